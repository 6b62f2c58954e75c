"""Kernels: kernels.toml, what a configuration must have, the order of modules."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from small_modules import RELEASE, build_kernel, build_module, symvers

from emu.errors import InputError
from emu.images import depends, kbuild, kconfig, kernel_specs, kernels
from emu.images.packages import load_wanted

CONFIG = """\
# Automatically generated file; DO NOT EDIT.
CONFIG_XEN=y
CONFIG_XEN_BLKDEV_FRONTEND=m
# CONFIG_XEN_512GB is not set
CONFIG_LOCALVERSION="-lab"
"""
NOTES = {1: 0, 17: 0x8801, 18: 0}


def test_kernels_name_existing_files_and_sets() -> None:
    sets = {want.name for want in load_wanted()}
    for spec in kernel_specs.specs().values():
        assert set(spec.packages.values()) <= sets
        assert spec.flavour in ("debian", "lab")
        for fragment in spec.config:
            assert kconfig.read_config(fragment.read_text())
        for series in (*spec.patches, spec.driver_patches):
            assert series is None or kbuild.series(series, spec.version)


def test_patch_may_have_a_variant_for_one_kernel(tmp_path: Path) -> None:
    (tmp_path / "6.12").mkdir()
    for name in ("0001-one.patch", "0002-two.patch", "6.12/0002-two.patch"):
        (tmp_path / name).touch()
    names = {
        version: [str(path.relative_to(tmp_path)) for path in kbuild.series(tmp_path, version)]
        for version in ("", "6.1", "6.12")
    }
    assert names["6.12"] == ["0001-one.patch", "6.12/0002-two.patch"]
    assert names["6.1"] == names[""] == ["0001-one.patch", "0002-two.patch"]
    (tmp_path / "6.12/0003-three.patch").touch()
    with pytest.raises(InputError, match=r"6\.12 has 0003-three\.patch, which"):
        kbuild.series(tmp_path, "6.12")


def test_lab_configuration_meets_the_requirements(tmp_path: Path) -> None:
    for spec in kernel_specs.specs().values():
        if spec.flavour == "lab":
            config = tmp_path / "config"
            # Selected by CONFIG_XEN_SAVE_RESTORE, and by CONFIG_XEN in 7.3.
            selected = ["CONFIG_HIBERNATE_CALLBACKS=y\n"]
            config.write_text("".join([f.read_text() for f in spec.config] + selected))
            kconfig.check_requirements(config, kernel_specs.requirements())


def test_later_line_of_a_configuration_counts() -> None:
    assert kconfig.read_config("CONFIG_X=y\n# CONFIG_X is not set\n") == {"CONFIG_X": "n"}
    assert kconfig.read_config("# CONFIG_X is not set\nCONFIG_X=m\n") == {"CONFIG_X": "m"}


def test_configuration_includes_options_not_set() -> None:
    assert kconfig.read_config(CONFIG) == {
        "CONFIG_XEN": "y",
        "CONFIG_XEN_BLKDEV_FRONTEND": "m",
        "CONFIG_XEN_512GB": "n",
        "CONFIG_LOCALVERSION": '"-lab"',
    }


def test_dropped_option_is_named() -> None:
    kconfig.check_fragment("CONFIG_XEN=y\n# CONFIG_NEVER_HEARD_OF is not set\n", CONFIG)
    with pytest.raises(InputError, match="2 of the options") as refused:
        kconfig.check_fragment(
            "CONFIG_XEN=y\nCONFIG_XEN_PVH=y\nCONFIG_XEN_BLKDEV_FRONTEND=y\n", CONFIG
        )
    assert refused.value.lines == (
        "CONFIG_XEN_PVH=y became n",
        "CONFIG_XEN_BLKDEV_FRONTEND=y became m",
    )


def test_missing_options_are_named(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    asked = kconfig.Requirements(("CONFIG_XEN",), ("CONFIG_XEN_BLKDEV_FRONTEND",), ())
    kconfig.check_requirements(config, asked)
    asked = kconfig.Requirements(
        ("CONFIG_XEN_BLKDEV_FRONTEND",), ("CONFIG_XEN",), ("CONFIG_XEN", "CONFIG_XENFS")
    )
    with pytest.raises(InputError, match="lacks what this rig needs") as refused:
        kconfig.check_requirements(config, asked)
    assert refused.value.lines == (
        "CONFIG_XEN_BLKDEV_FRONTEND=y: it is m",
        "CONFIG_XEN=m: it is y",
        "CONFIG_XENFS=y or m: it is n",
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A complete kernel built elsewhere."""
    root = tmp_path / "kernel"
    build_kernel(root / "vmlinux", notes=NOTES)
    (root / "release").write_text(f"{RELEASE}\n")
    (root / "Module.symvers").write_text(symvers(printk=0x92997ED8))
    asked = kernel_specs.requirements()
    options = dict.fromkeys(asked.modules, "m") | dict.fromkeys(asked.built_in + asked.either, "y")
    (root / "config").write_text("".join(f"{name}={value}\n" for name, value in options.items()))
    modules = root / "lib/modules" / RELEASE
    build_module(modules / "kernel/xen-blkback.ko")
    (modules / "modules.builtin").write_text("kernel/fs/configfs/configfs.ko\n")
    return root


def test_complete_kernel_is_accepted(given: Path) -> None:
    kernel = kernels.kernel_at(given)
    assert kernel.release == RELEASE
    assert kernel.version.startswith(f"Linux version {RELEASE} ")
    assert kernel.info().exports["printk"].crc == 0x92997ED8
    assert kernel.debug is None
    assert kernel.module("xen_blkback") == kernel.module("xen-blkback")
    with pytest.raises(InputError, match="has no module xen-blkfront"):
        kernel.module("xen-blkfront")


def test_incomplete_kernel_is_refused(given: Path) -> None:
    config = (given / "config").read_text()
    (given / "config").write_text(config.replace("CONFIG_XEN_PVH=y\n", ""))
    with pytest.raises(InputError, match="lacks") as refused:
        kernels.kernel_at(given)
    assert refused.value.lines == ("CONFIG_XEN_PVH=y: it is n",)
    (given / "config").write_text(config)
    build_kernel(given / "vmlinux", notes={})
    with pytest.raises(InputError, match="without Xen support"):
        kernels.kernel_at(given)
    build_kernel(given / "vmlinux", notes=NOTES, release="6.1.0-57-amd64")
    with pytest.raises(InputError, match="it is another kernel"):
        kernels.kernel_at(given)
    (given / "Module.symvers").unlink()
    with pytest.raises(InputError, match=r"it has no Module\.symvers"):
        kernels.kernel_at(given)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A package's module tree: no modules.dep, one module compressed."""
    tree = tmp_path / "package" / RELEASE
    needs = {
        "fs/ext4": ["depends=jbd2,mbcache", "softdep=pre: crypto-crc32c"],
        "fs/jbd2": ["softdep=pre: crypto-crc32c"],
        "fs/mbcache": [],
        "crypto/crc32c_generic": ["alias=crypto-crc32c"],
        "drivers/virtio_ring": [],
        "drivers/virtio": ["depends=virtio_ring"],
        "drivers/virtio_pci": ["depends=virtio,virtio_ring"],
        "drivers/xen-blkback": [],
        "sound/other": [],
    }
    for name, info in needs.items():
        words = next((line[8:] for line in info if line.startswith("depends=")), "")
        # depmod goes by the symbols that modules use and export.
        build_module(
            tree / "kernel" / f"{name}.ko",
            info=info,
            uses={f"of_{one}": 1 for one in words.split(",") if one},
            exports={f"of_{depends.plain(Path(name).name)}": 1},
        )
    ring = tree / "kernel/drivers/virtio_ring.ko"
    ring.with_suffix(".ko.xz").write_bytes(lzma.compress(ring.read_bytes()))
    ring.unlink()
    (tree / "modules.builtin").write_text("kernel/fs/configfs/configfs.ko\n")
    (tree / "modules.builtin.modinfo").write_bytes(b"configfs.license=GPL\0")
    return tree


def test_dependencies_are_loaded_first(modules: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / RELEASE
    depends.keep_modules(
        modules, ["ext4", "virtio-pci", "crc32c_generic", "xen_blkback", "configfs"], kept
    )
    assert not (kept / "kernel/sound").exists()
    assert (kept / "kernel/drivers/virtio_ring.ko").read_bytes().startswith(b"\x7fELF")
    assert (kept / "modules.builtin.modinfo").exists()
    lines = (kept / "modules.dep").read_text().splitlines()
    assert "kernel/drivers/virtio.ko: kernel/drivers/virtio_ring.ko" in lines
    assert lines == sorted(lines)
    order = [path.name for path in depends.order_of(kept, ["virtio_pci", "configfs", "ext4"])]
    assert set(order[:3]) == {"virtio_ring.ko", "virtio.ko", "virtio_pci.ko"}
    for first, then in [
        ("virtio_ring", "virtio"),
        ("virtio", "virtio_pci"),
        ("crc32c_generic", "jbd2"),
        ("jbd2", "ext4"),
        ("mbcache", "ext4"),
    ]:
        assert order.index(f"{first}.ko") < order.index(f"{then}.ko")
    assert len(order) == len(set(order)) == 7
    assert all(path.is_file() for path in depends.order_of(kept, ["ext4", "xen-blkback"]))


def test_unknown_module_is_refused(modules: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no module nothing"):
        depends.keep_modules(modules, ["nothing"], tmp_path / "kept")
    kept = tmp_path / "kept" / RELEASE
    depends.keep_modules(modules, ["virtio"], kept)
    with pytest.raises(InputError, match="has no module ext4, nor is it built in"):
        depends.order_of(kept, ["ext4"])


def test_module_order_needs_no_indexes_and_leaves_none(modules: Path) -> None:
    stale = {name: modules / name for name in ("modules.dep", "modules.order")}
    before = sorted([*modules.rglob("*"), *stale.values()])
    for name, path in stale.items():
        path.write_text(name)
    order = [path.name for path in depends.order_of(modules, ["virtio"])]
    assert order == ["virtio_ring.ko.xz", "virtio.ko"]
    assert sorted(modules.rglob("*")) == before
    assert {name: path.read_text() for name, path in stale.items()} == {
        name: name for name in stale
    }


def test_module_order_ignores_this_machines_configuration(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "modprobe.conf"
    config.write_text("install virtio /bin/false\nsoftdep virtio pre: mbcache\n")
    monkeypatch.setenv("MODPROBE_OPTIONS", f"--config={config}")
    assert len(depends.order_of(modules, ["virtio"])) == 2


def test_indexes_do_not_depend_on_the_order_of_a_directory(modules: Path) -> None:
    made = depends.read_indexes(modules)
    assert {"modules.dep", "modules.dep.bin", "modules.alias", "modules.builtin"} <= made.keys()
    assert "modules.order" not in made
    lines = made["modules.dep"].decode().splitlines()
    assert lines == sorted(lines), "in the order of a directory"
