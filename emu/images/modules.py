"""The two block drivers: stock, with our patches, or as given; always checked.

`stock` is the module the kernel came with. `patched` is built out of tree from the same
source with the series of kernels.toml, and whatever else `BuildContext.patched` asks for.
Nothing is handed out that the kernel would not load (`elf.check_module`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError
from emu.images import elf, kbuild, packed
from emu.images.context import BuildContext
from emu.images.depends import plain
from emu.images.driver_source import DriverSource, package_source
from emu.images.driver_source import driver_source as driver_source
from emu.images.kernel_specs import spec
from emu.images.kernels import Kernel
from emu.images.manifest import JSON
from emu.images.patched import MORE_PATCHES, PatchedDrivers
from emu.images.patched import End as End
from emu.images.replaced import settled
from emu.progress import Progress
from emu.runprogram import run

ENDS: tuple[End, ...] = ("front", "back")
STOCK, PATCHED = "stock", "patched"
MODULE = {"front": "xen-blkfront", "back": "xen-blkback"}
"""The module of each end, as its file is called."""

_WHERE = "drivers/block"
_KBUILD = "obj-m := xen-blkfront.o xen-blkback/\n"
_RECIPE = 2
"""Raised when the way modules are built changes the outcome; a part of cache keys."""
_STEPS = 8


@dataclass(frozen=True)
class Driver:
    """One end's driver, checked against its kernel.

    `which` is "stock", "patched" or the path that was given; `path` is the .ko on
    this machine, uncompressed for what we build.
    """

    end: End
    which: str
    path: Path
    info: elf.ModuleInfo

    @property
    def build_id(self) -> str:
        """In hex; the guest has it in /sys/module/<name>/notes/.note.gnu.build-id."""
        return self.info.build_id


@settled
def get_driver(
    end: End,
    which: str | Path,
    kernel: Kernel,
    context: BuildContext,
    *,
    parameters: Iterable[str] = (),
) -> Driver:
    """The driver of one end for `kernel`: "stock", "patched" (built if need be), or a .ko.

    `parameters` are those it will be loaded with. Raises InputError if it would not load,
    is the other end's, or cannot be built.
    """
    if which == STOCK:
        path = kernel.module(MODULE[end])
    elif which == PATCHED and (given := context.patched.given(end)):
        path = given
    elif which == PATCHED:
        patches = patches_of(kernel, context.patched)
        path = build_drivers(kernel, patches, context) / f"{MODULE[end]}.ko"
    else:
        path = Path(which)
    info = elf.read_module(path)
    if info.name != plain(MODULE[end]):
        raise InputError(f"{path} is the module {info.name}, the {end} end is {MODULE[end]}")
    elf.check_module(info, kernel.info(), parameters=parameters)
    return Driver(end, str(which), path, info)


def patches_of(kernel: Kernel, patched: PatchedDrivers) -> tuple[Path, ...]:
    """The patches that `patched` drivers of `kernel` have, in order: the series, then others.

    Raises InputError for a kernel that none are made for, or a patch that is not there.
    """
    if kernel.flavour == "given":
        raise InputError(f"no drivers are built for {kernel.name}", hint="give them as .ko")
    wanted = spec(kernel.name)
    if wanted.driver_patches is None:
        raise InputError(f"kernels.toml names no driver patches for {kernel.name}")
    more: list[Path] = []
    for path in patched.patches:
        if path.is_dir():
            more += kbuild.series(path, wanted.version)
        elif path.is_file():
            more.append(path)
        else:
            raise InputError(f"there is no driver patch {path}", hint=f"${MORE_PATCHES} names it")
    return (*kbuild.series(wanted.driver_patches, wanted.version), *more)


def source_of(kernel: Kernel, context: BuildContext) -> DriverSource:
    """Where the source of a kernel's drivers comes from."""
    return package_source(spec(kernel.name), context)


def for_guest(driver: Driver, into: Path) -> Path:
    """The module in directory `into`, uncompressed and without debug information.

    DWARF is nine tenths of a module and of no use to a guest; the build id stays.
    """
    file = into / f"{MODULE[driver.end]}.ko"
    file.write_bytes(packed.unpacked(driver.path))
    command = ["strip", "--strip-debug", str(file)]
    run(command, f"strip refuses {driver.path}", error=InputError, lines=3)
    return file


def build_drivers(kernel: Kernel, patches: Sequence[Path], context: BuildContext) -> Path:
    """A directory with both drivers of `kernel`, its source changed by `patches` in order.

    Both have DWARF and a build id. Raises InputError for a patch that does not apply, or
    a source that does not compile.
    """
    source = source_of(kernel, context)
    toolchain = kbuild.find_toolchain(kernel.config.read_text())
    inputs: dict[str, JSON] = {
        "kernel": kernel.root.name,
        "source": source.digest,
        "patches": kbuild.digest(patches),
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
    }

    def build(made: Path) -> None:
        with (
            context.progress.stage(f"building the drivers for {kernel.release}"),
            kbuild.workplace(context.cache, "drivers") as scratch,
        ):
            tree = scratch / "source"
            source.copy(tree, context)
            for patch in patches:
                kbuild.apply_patch(patch, tree)
            unpack_devel(kernel, scratch, context.progress)
            compile_drivers(kernel, scratch, toolchain, context.progress)
            for end, built in compiled(scratch, kernel).items():
                shutil.copy(built, made / f"{MODULE[end]}.ko")

    return context.entry("drivers", inputs, build)


def unpack_devel(kernel: Kernel, place: Path, progress: Progress) -> None:
    """Unpack what modules of `kernel` are built against, as `place`/devel."""
    devel = place / "devel"
    devel.mkdir()
    progress.tick("unpacking the headers")
    command = ["tar", "-x", "-f", str(kernel.devel), "-C", str(devel)]
    run(command, f"cannot unpack {kernel.devel}", lines=3, progress=progress)


def compile_drivers(
    kernel: Kernel,
    place: Path,
    toolchain: kbuild.Toolchain,
    progress: Progress,
    *more: str,
    steps: int = _STEPS,
) -> list[str]:
    """Build both drivers from `place`/source against `place`/devel; what make printed.

    `more` are further arguments of make, `steps` about how many steps it prints. Raises
    InputError with the compiler's errors.
    """
    source = place / "source" / _WHERE
    (source / "Kbuild").write_text(_KBUILD)
    return kbuild.make(
        place / "devel/build", f"M={os.path.realpath(source)}", "modules",
        # The series may be built for a kernel that has one of the two switched off.
        "CONFIG_XEN_BLKDEV_FRONTEND=m", "CONFIG_XEN_BLKDEV_BACKEND=m",
        # Type information for BPF, which nothing here loads: it would need pahole on this machine.
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
        *kbuild.without_newer_flags(toolchain, kernel.config.read_text()), *more,
        toolchain=toolchain, progress=progress, what=f"the drivers for {kernel.release}",
        steps=steps, hide=place,
    )  # fmt: skip


def compiled(place: Path, kernel: Kernel) -> dict[End, Path]:
    """The modules that were built from `place`/source; InputError if one would not load."""
    found: dict[End, Path] = {}
    for end in ENDS:
        found[end] = next((place / "source" / _WHERE).rglob(f"{MODULE[end]}.ko"))
        elf.check_module(elf.read_module(found[end]), kernel.info())
    return found
