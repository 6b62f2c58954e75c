"""The kernels the guests run: taken out of a Debian package, or built for this rig.

Either becomes the same directory, a `Kernel`: what Xen boots, what modules have to fit,
and what modules are built against. `guest-images/kernels.toml` lists them.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError, RigError
from emu.images import elf, kbuild, packed
from emu.images.context import BuildContext
from emu.images.depends import find_modules, keep_modules, order_of, plain
from emu.images.fetch import fetch
from emu.images.kbuild_programs import LIBRARIES, make_runnable
from emu.images.kconfig import Requirements, check_fragment, check_requirements
from emu.images.manifest import JSON
from emu.images.packages import lock_digest
from emu.progress import Progress
from emu.runprogram import SILENCE, bounded, find_program, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

DEFAULT_RELEASE = "6.1"
"""The release of a kernel that is named without one."""
_DEBIAN_RECIPE, _LAB_RECIPE = 1, 1
"""Raised when the way a kernel is made changes the outcome; parts of cache keys."""
_LAB_STEPS = 1940
"""Lines of progress that make prints while it builds the lab kernel (6.1.192)."""
_LAB_ROOM = 5 << 30
"""Bytes that building the lab kernel takes on the way (measured: 1.5 GB source, 2.3 GB with
objects)."""


@dataclass(frozen=True)
class Spec:
    """One entry of kernels.toml; paths are absolute, in the order they are used."""

    name: str
    flavour: str
    packages: Mapping[str, str]
    config: tuple[Path, ...]
    patches: tuple[Path, ...]
    driver_patches: Path | None

    @property
    def version(self) -> str:
        """The release line of its source ("6.12"): the last part of the name."""
        return self.name.rpartition("-")[2]


@dataclass(frozen=True)
class Kernel:
    """A kernel on this machine, with all its files below `root`.

    `name` is that of kernels.toml (or the path of a given one), `release` what
    `uname -r` prints in the guest, `version` its whole banner ("Linux version …").
    """

    name: str
    flavour: str
    release: str
    version: str
    root: Path

    @property
    def vmlinux(self) -> Path:
        """The uncompressed ELF file that Xen boots, without symbols."""
        return self.root / "vmlinux"

    @property
    def debug(self) -> Path | None:
        """The same with symbols and DWARF, where we have it."""
        path = self.root / "vmlinux.debug"
        return path if path.exists() else None

    @property
    def config(self) -> Path:
        """The final .config."""
        return self.root / "config"

    @property
    def symvers(self) -> Path:
        """Module.symvers: exported symbols and their CRCs."""
        return self.root / "Module.symvers"

    @property
    def modules(self) -> Path:
        """`lib/modules/<release>`."""
        return self.root / "lib/modules" / self.release

    @property
    def devel(self) -> Path:
        """A tar of what modules are built against; its `build` is the directory for make."""
        return self.root / "devel.tar"

    def info(self) -> elf.KernelInfo:
        """What modules are checked against (read once per process)."""
        return _info(self)

    def module(self, name: str) -> Path:
        """The file of one of its modules; InputError if there is none of that name."""
        path = find_modules(self.modules).get(plain(name))
        if path is None:
            raise InputError(f"{self.name} ({self.release}) has no module {name}")
        return path

    def module_order(self, names: Iterable[str]) -> list[Path]:
        """The files to insmod for these modules, in order; what is built in is left out."""
        return order_of(self.modules, names)


def specs() -> dict[str, Spec]:
    """The entries of kernels.toml by name."""
    found = {}
    for name, entry in _document()["kernels"].items():
        driver_patches = entry.get("driver-patches")
        found[name] = Spec(
            name,
            entry["flavour"],
            dict(entry["packages"]),
            tuple(paths.guest_images() / fragment for fragment in entry.get("config", ())),
            tuple(paths.guest_images() / folder for folder in entry.get("patches", ())),
            paths.guest_images() / driver_patches if driver_patches else None,
        )
    return found


def full_name(kernel: str) -> str:
    """The name in kernels.toml of a kernel that may be named without its release (then 6.1)."""
    return kernel if re.search(r"-\d+\.\d+$", kernel) else f"{kernel}-{DEFAULT_RELEASE}"


def spec(name: str) -> Spec:
    """One entry of kernels.toml; InputError names those there are."""
    known = specs()
    if name not in known:
        raise InputError(f"there is no kernel {name!r}", hint=f"there are: {', '.join(known)}")
    return known[name]


def requirements() -> Requirements:
    """What kernels.toml asks of every kernel's configuration."""
    asked = _document()["requires"]
    return Requirements(tuple(asked["built-in"]), tuple(asked["modules"]), tuple(asked["either"]))


def get_kernel(name: str, context: BuildContext) -> Kernel:
    """The kernel `name`, from the cache or made now (lab: minutes).

    Raises InputError for an unknown name, a missing tool, a patch or an option that does
    not take, or a kernel without Xen support.
    """
    wanted = spec(name)
    make = {"debian": _debian, "lab": _lab}[wanted.flavour]
    return _load(make(wanted, context), name, wanted.flavour)


def kernel_at(root: Path) -> Kernel:
    """A kernel built elsewhere: a directory with the files that `Kernel` names.

    Raises InputError for what is missing: a file, an option, Xen support.
    """
    for name in ("vmlinux", "config", "Module.symvers", "release", "lib/modules"):
        if not (root / name).exists():
            raise InputError(f"{root} is not a kernel: it has no {name}")
    check_requirements(root / "config", requirements())
    elf.require_xen(root / "vmlinux", pv=True, pvh=True, dom0=True)
    kernel = _load(root, str(root), "given")
    kernel.info()
    return kernel


# -- below: the packaged kernel


def _debian(wanted: Spec, context: BuildContext) -> Path:
    sets = [wanted.packages["image"], wanted.packages["headers"]]
    asked = _document()["keep"]
    keep, where_present = tuple(asked["modules"]), tuple(asked["where-present"])
    inputs: dict[str, JSON] = {
        "packages": lock_digest(context.lock, sets),
        "modules": sorted({*keep, *where_present}),
        "recipe": _DEBIAN_RECIPE,
    }

    def build(made: Path) -> None:
        debs = fetch(sets, context)
        with (
            context.progress.stage(f"unpacking {wanted.name}"),
            context.cache.scratch("kernel") as scratch,
        ):
            for number, (package, deb) in enumerate(debs.items()):
                context.progress.tick(package.name, number, len(debs))
                packed.unpack_deb(deb, scratch, context.progress)
            _collect_debian(scratch, made, keep, where_present, context.progress)

    return context.entry("kernel-debian", inputs, build)


def _collect_debian(
    tree: Path,
    made: Path,
    keep: Sequence[str],
    where_present: Sequence[str],
    progress: Progress,
) -> None:
    # Until 7.1 a package has /boot/vmlinuz-RELEASE; from 7.2 on several have all below
    # /usr/lib/modules/RELEASE.
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if len(images) != 1:
        raise RigError(f"the packages hold {len(images)} kernels, one was expected")
    (image,) = images
    if image.name == "vmlinuz":
        release, config = image.parent.name, image.with_name("config")
    else:
        release = image.name.removeprefix("vmlinuz-")
        config = image.with_name(f"config-{release}")
    vmlinux = packed.extract_vmlinux(image.read_bytes(), what=image.name)
    (made / "vmlinux").write_bytes(vmlinux)
    shutil.copy(config, made / "config")
    headers = tree / f"usr/src/linux-headers-{release}"
    shutil.copy(headers / "Module.symvers", made / "Module.symvers")
    modules = next(
        path for top in ("lib", "usr/lib") if (path := tree / top / "modules" / release).is_dir()
    )
    there = find_modules(modules)
    names = [*keep, *(name for name in where_present if plain(name) in there)]
    keep_modules(modules, names, made / "lib/modules" / release)
    # The headers name each other by absolute paths: let them lie anywhere.
    makefile = headers / "Makefile"
    here = "$(dir $(lastword $(MAKEFILE_LIST)))"
    text = makefile.read_text().replace(" /usr/src/", f" {here}../")
    output = re.compile(r"^KBUILD_OUTPUT=/usr/src/\S+$", re.MULTILINE)
    makefile.write_text(output.sub("KBUILD_OUTPUT := $(CURDIR)", text))
    for arch in tree.glob("usr/src/linux-headers-*-common*/arch/*"):
        if arch.is_dir() and arch.name != "x86":
            shutil.rmtree(arch)
    (tree / "build").symlink_to(f"usr/src/{headers.name}")
    kept = ["build", "usr/src"]
    kept += [str(path.relative_to(tree)) for path in tree.glob("usr/lib/linux-kbuild-*")]
    if make_runnable(tree):
        kept.append(LIBRARIES)
    _tar(tree, kept, made / "devel.tar", progress)
    _seal(made, release)


# -- below: the kernel of our own


def _lab(wanted: Spec, context: BuildContext) -> Path:
    patches = [patch for folder in wanted.patches for patch in kbuild.series(folder)]
    toolchain = kbuild.find_toolchain()
    inputs: dict[str, JSON] = {
        "source": lock_digest(context.lock, [wanted.packages["source"]]),
        "config": kbuild.digest(wanted.config),
        "patches": kbuild.digest(patches),
        "toolchain": toolchain.version,
        "recipe": _LAB_RECIPE,
    }

    def build(made: Path) -> None:
        kbuild.need_kernel_tools(toolchain)
        deb = source_deb(wanted, context)
        with (
            context.progress.stage(f"building {wanted.name} from {deb.name}"),
            kbuild.workplace(context.cache, "kernel") as scratch,
        ):
            tree = scratch / "linux"
            context.progress.tick("unpacking the source")
            _unpack_source(deb, tree)
            for patch in patches:
                context.progress.tick(f"applying {patch.name}")
                kbuild.apply_patch(patch, tree)
            fragment = "".join(path.read_text() for path in wanted.config)
            (scratch / "fragment").write_text(fragment)
            make = functools.partial(
                kbuild.make, tree, toolchain=toolchain, progress=context.progress, what=wanted.name
            )
            make("allnoconfig", f"KCONFIG_ALLCONFIG={scratch / 'fragment'}")
            check_fragment(fragment, (tree / ".config").read_text())
            check_requirements(tree / ".config", requirements())
            make("vmlinux", "modules", steps=_LAB_STEPS)
            # Into a path without spaces first: modules_install is kbuild's too.
            make("modules_install", f"INSTALL_MOD_PATH={scratch / 'root'}", "DEPMOD=true")
            _collect_lab(tree, scratch / "root/lib/modules", made, context.progress)

    return context.entry("kernel-lab", inputs, build, room=_LAB_ROOM)


def source_deb(wanted: Spec, context: BuildContext) -> Path:
    """The linux-source package of a kernel."""
    debs = fetch([wanted.packages["source"]], context)
    return next(deb for package, deb in debs.items() if package.name.startswith("linux-source-"))


def _unpack_source(deb: Path, tree: Path) -> None:
    """Unpack the whole kernel source so that its top becomes `tree`."""
    tree.mkdir()
    program = find_program("tar")
    command = [program, "-x", "--strip-components=1", "-C", str(tree)]
    with (
        packed.source_tar(deb) as source,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as tar,
        bounded(tar, f"unpacking {deb.name}", SILENCE),
    ):
        assert tar.stdin is not None
        with contextlib.suppress(BrokenPipeError), tar.stdin:
            shutil.copyfileobj(source, tar.stdin, 1 << 20)
        if tar.wait():
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()
            raise RigError(f"cannot unpack {deb.name}", lines=lines[-3:])


def _collect_lab(tree: Path, installed: Path, made: Path, progress: Progress) -> None:
    release = (tree / "include/config/kernel.release").read_text().strip()
    shutil.copy(tree / "vmlinux", made / "vmlinux.debug")
    strip = ["strip", "-s", "-o", str(made / "vmlinux"), str(tree / "vmlinux")]
    run(strip, "strip refuses vmlinux", progress=progress)
    shutil.copy(tree / ".config", made / "config")
    shutil.copy(tree / "Module.symvers", made / "Module.symvers")
    modules = installed / release
    keep_modules(modules, sorted(find_modules(modules)), made / "lib/modules" / release)
    (tree / "build").symlink_to(".")
    names = ["build", ".config", "Makefile", "Module.symvers", "arch/x86", "include", "scripts"]
    names += ["tools/objtool/objtool"]
    left_out = ("--exclude=*.o", "--exclude=*.a", "--exclude=.*.cmd")
    _tar(tree, names, made / "devel.tar", progress, *left_out)
    _seal(made, release)


# -- below: what both need


def _load(root: Path, name: str, flavour: str) -> Kernel:
    release = (root / "release").read_text().strip()
    version = root / "version"
    banner = version.read_text().strip() if version.exists() else elf.banner(root / "vmlinux")
    return Kernel(name, flavour, release, banner, root)


def _seal(made: Path, release: str) -> None:
    """The last touches, and the last checks before a kernel may enter the cache."""
    (made / "release").write_text(f"{release}\n")
    (made / "version").write_text(f"{elf.banner(made / 'vmlinux')}\n")
    check_requirements(made / "config", requirements())
    elf.require_xen(made / "vmlinux", pv=True, pvh=True, dom0=True)
    elf.read_kernel(made / "vmlinux", release, made / "Module.symvers")


def _tar(tree: Path, names: Sequence[str], into: Path, progress: Progress, *more: str) -> None:
    command = ["tar", "--create", "--file", str(into), "--sort=name", "--mtime=@0", "--owner=0"]
    command += ["--group=0", "--numeric-owner", "--mode=u+w,go=rX", *more, *names]
    run(command, f"cannot write {into}", lines=3, cwd=tree, progress=progress)


@functools.lru_cache(maxsize=8)
def _info(kernel: Kernel) -> elf.KernelInfo:
    return elf.read_kernel(kernel.vmlinux, kernel.release, kernel.symvers)


def _document() -> dict[str, Any]:
    path = paths.guest_images() / "kernels.toml"
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return document
