"""A kernel out of packages: small real .deb files, with and without headers, for either guest."""

from __future__ import annotations

import hashlib
import lzma
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from kernel_names import a_kernel
from small_modules import build_kernel, build_module

from emu.errors import InputError
from emu.images import elf, kernel_specs, kernels, modules
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.kernel_specs import Spec
from emu.images.packages import Lock, Package

NOTES = {1: 0, 17: 0x8801, 18: 0}
"""Xen notes of a kernel for PV, PVH and dom0; of a cloud kernel the last bit of 17 is missing."""
TABLE = """
.section __ksymtab_strings,"a"
name: .asciz "printk"
.section __ksymtab,"a"
.long 0, name - ., 0
.section __kcrctab,"a"
.long 0x92997ed8
"""


def release_of(spec: Spec) -> str:
    return spec.packages["image"].partition("-")[2]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def image(root: Path, spec: Spec, *, lacks: str = "", dom0: bool = True) -> None:
    """The files of an image package as Debian has them: configuration, kernel, modules."""
    release = release_of(spec)
    notes = NOTES if dom0 else {**NOTES, 17: 0x8001}
    vmlinuz = build_kernel(root / f"boot/vmlinuz-{release}", release=release, notes=notes)
    table = root.with_suffix(".o")
    assembler = ["gcc", "-c", "-xassembler", "-", "-o", str(table)]
    subprocess.run(assembler, input=TABLE, text=True, check=True)
    linked = root.with_suffix(".linked")
    subprocess.run(["ld", "-e0", "-o", linked, vmlinuz, table], check=True)
    linked.replace(vmlinuz)
    asked = kernel_specs.requirements(dom0=dom0)
    options = dict.fromkeys(asked.modules, "m") | dict.fromkeys(asked.built_in + asked.either, "y")
    options.pop(lacks, None)
    lines = "".join(f"{name}={value}\n" for name, value in options.items())
    (root / f"boot/config-{release}").write_text(lines)
    tree = root / f"usr/lib/modules/{release}"
    vermagic = f"{release} SMP preempt mod_unload modversions "
    for name in modules.MODULE.values():
        made = build_module(tree / f"kernel/{name}.ko", vermagic=vermagic)
        packed = lzma.compress(made.read_bytes(), preset=0)
        made.with_suffix(".ko.xz").write_bytes(packed)
        made.unlink()
    for name in kernel_specs.document()["keep"]["modules"]:
        if not (path := tree / f"kernel/{name}.ko.xz").exists():
            path.write_bytes(packed)
    (tree / "modules.builtin").write_text("")


def package(folder: Path, name: str, root: Path, sets: tuple[str, ...]) -> Package:
    """Make a .deb of a tree; its line of a lock."""
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@y>\n"
    (root / "DEBIAN/control").write_text(f"{control}Description: x\n")
    made = Package("test", name, "1", "amd64", "", 0, sets)
    folder.mkdir(parents=True, exist_ok=True)
    deb = folder / made.file_name
    subprocess.run(["dpkg-deb", "-Znone", "-b", root, deb], check=True, capture_output=True)
    data = deb.read_bytes()
    return Package("test", name, "1", "amd64", hashlib.sha256(data).hexdigest(), len(data), sets)


def context_of(cache: Cache, tmp_path: Path, spec: Spec, **kinds: object) -> BuildContext:
    """A context whose lock has this kernel's image alone, fetched already."""
    root = tmp_path / "image"
    image(root, spec, **kinds)  # type: ignore[arg-type]
    sets = (spec.packages["image"],)
    entry = package(cache.store("debs"), f"linux-image-{release_of(spec)}", root, sets)
    return BuildContext(cache, pinned=Lock("", (entry,)))


def test_kernel_without_headers_checks_and_has_its_stock_drivers(
    cache: Cache, tmp_path: Path
) -> None:
    spec = kernel_specs.spec(a_kernel(headers=False, series=False))
    context = context_of(cache, tmp_path, spec)
    kernel = kernels.get_kernel(spec.name, context)
    assert (kernel.name, kernel.release) == (spec.name, release_of(spec))
    assert kernel.info().exports["printk"] == elf.Export(0x92997ED8, "vmlinux")
    assert not kernel.devel.exists()
    for end in modules.ENDS:
        driver = modules.get_driver(end, "stock", kernel, context)
        assert driver.path.suffix == ".ko"
    # One of another kernel is refused as for any kernel.
    other = build_module(tmp_path / "other.ko", name="xen_blkfront", uses={"kmalloc": 1},
                         vermagic=kernel.info().vermagic)  # fmt: skip
    with pytest.raises(InputError, match="needs the symbol kmalloc"):
        modules.get_driver("front", other, kernel, context)
    with pytest.raises(InputError, match="no headers for it any more"):
        modules.get_driver("front", "patched", kernel, context)
    with pytest.raises(InputError, match="no headers for it any more"):
        modules.build_drivers(kernel, [], context)


def test_cloud_kernel_has_what_a_domu_needs(cache: Cache, tmp_path: Path) -> None:
    spec = kernel_specs.spec(a_kernel("cloud", headers=False, series=False))
    kernel = kernels.get_kernel(spec.name, context_of(cache, tmp_path, spec, dom0=False))
    assert [path.name for path in kernel.modules.rglob("*.ko")] == ["xen-blkfront.ko"]


def test_packages_of_a_kernel_that_is_none_for_a_guest_are_refused(
    cache: Cache, tmp_path: Path
) -> None:
    cases: Mapping[str, tuple[str, str]] = {
        "debian": ("CONFIG_TCM_USER2", "CONFIG_TCM_USER2=y or m: it is n"),
        "cloud": ("CONFIG_HVC_XEN_FRONTEND", "CONFIG_HVC_XEN_FRONTEND=y: it is n"),
    }
    for flavour, (option, line) in cases.items():
        spec = kernel_specs.spec(a_kernel(flavour, headers=False, series=False))
        context = context_of(cache, tmp_path / flavour, spec, lacks=option, dom0=spec.dom0)
        with pytest.raises(InputError, match="lacks what this rig needs") as refused:
            kernels.get_kernel(spec.name, context)
        assert refused.value.lines == (line,)
