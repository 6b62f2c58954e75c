"""The two block drivers: stock, with our patches, or as given; always checked.

`stock` is the module the kernel came with. `patched` is built out of tree from the same
source with the series of kernels.toml, and whatever else `BuildContext.patched` asks for.
The drivers of a tree are the tree's own: both names stand for them, and the series for nothing.
Nothing is handed out that the kernel would not load (`elf.check_module`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emu.errors import InputError
from emu.images import build_warnings, counted, elf, kbuild, packed
from emu.images.build_errors import explained
from emu.images.build_warnings import BuildWarning
from emu.images.context import BuildContext
from emu.images.depends import plain
from emu.images.driver_recipe import Recipe, apply_all, recipe_for, source_of
from emu.images.kernel_specs import require_buildable, spec
from emu.images.kernels import Kernel
from emu.images.manifest import JSON
from emu.images.patch_files import Patch
from emu.images.patched import End as End
from emu.images.replaced import settled
from emu.progress import Progress
from emu.runprogram import run

ENDS: tuple[End, ...] = ("front", "back")
STOCK, PATCHED = "stock", "patched"
MODULE = {"front": "xen-blkfront", "back": "xen-blkback"}
"""The module of each end, as its file is called."""

COUNTED = "drivers-counted"
"""The kind of a cache entry of drivers with counters."""
_WHERE = "drivers/block"
_KBUILD = "obj-m := xen-blkfront.o xen-blkback/\n"
_RECIPE = 2
"""Raised when the way modules are built changes the outcome; a part of cache keys."""
_STEPS = 8


@dataclass(frozen=True)
class Driver:
    """One end's driver, checked against its kernel.

    `which` is "stock", "patched" or the path that was given; `path` is the .ko on
    this machine, uncompressed for what we build. `recipe` is what a patched one, or one of a
    tree, was built from; None for a module that was given.
    """

    end: End
    which: str
    path: Path
    info: elf.ModuleInfo
    recipe: Recipe | None = None
    counters: Path | None = None
    """The module that keeps its counters in the guest, where it has any (emu.images.counted)."""
    warnings: tuple[BuildWarning, ...] = ()
    """What the compiler says of the patches that somebody asked for, each time it is had."""

    @property
    def build_id(self) -> str:
        """In hex; the guest has it in /sys/module/<name>/notes/.note.gnu.build-id."""
        return self.info.build_id

    @property
    def made_of(self) -> str:
        """In a few words: "stock", "series", "series + 1 patch", "tree …", a file's name."""
        if self.recipe is not None:
            return str(self.recipe)
        return self.which if self.which == STOCK else self.path.name


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
    recipe: Recipe | None = None
    warnings: tuple[BuildWarning, ...] = ()
    if which == STOCK and kernel.tree is not None:
        recipe = Recipe(source_of(kernel, context), "stock", (), ())
        path = build(recipe, kernel, context) / f"{MODULE[end]}.ko"
    elif which == STOCK:
        path = kernel.module(MODULE[end])
    elif which == PATCHED and (given := context.patched.given(end)):
        path = given
    elif which == PATCHED:
        recipe = recipe_for(kernel, context).of(end)
        if recipe.plain:
            path = kernel.module(MODULE[end])
        else:
            built = build(recipe, kernel, context, with_counters=context.patched.counted)
            path = built / f"{MODULE[end]}.ko"
            warnings = warnings_of(built, recipe, kernel, context, end)
    else:
        path = Path(which)
    info = read_driver(end, path)
    elf.check_module(info, kernel.info(), parameters=parameters)
    return Driver(end, str(which), path, info, recipe, warnings=warnings)


def read_driver(end: End, path: Path) -> elf.ModuleInfo:
    """What a module says of itself. Raises InputError if it is none, or the other end's."""
    info = elf.read_module(path)
    if info.name != plain(MODULE[end]):
        raise InputError(f"{path} is the module {info.name}, the {end} end is {MODULE[end]}")
    return info


def patches_of(kernel: Kernel, context: BuildContext) -> tuple[Patch, ...]:
    """The patches that `patched` drivers of `kernel` have, in order.

    Raises InputError for a kernel that none are made for, or a patch that is not there.
    """
    return recipe_for(kernel, context).patches


def for_guest(driver: Driver, into: Path) -> Path:
    """The module in directory `into`, uncompressed and without debug information.

    DWARF is nine tenths of a module and of no use to a guest; the build id stays.
    """
    file = into / f"{MODULE[driver.end]}.ko"
    file.write_bytes(packed.unpacked(driver.path))
    command = ["strip", "--strip-debug", str(file)]
    run(command, f"strip refuses {driver.path}", error=InputError, lines=3)
    return file


def build_drivers(kernel: Kernel, patches: Sequence[Patch], context: BuildContext) -> Path:
    """A directory with both drivers of `kernel`, its own source changed by `patches` in order."""
    return build(Recipe(source_of(kernel, context), "stock", (), tuple(patches)), kernel, context)


def warnings_of(
    built: Path, recipe: Recipe, kernel: Kernel, context: BuildContext, end: End
) -> tuple[BuildWarning, ...]:
    """The compiler's warnings about one end that `recipe.more` adds, noted once in a context.

    Where there are any, the drivers without these patches are built, too, for comparison.
    """
    if not recipe.more:
        return ()

    def base() -> Path:
        return build(replace(recipe, more=()), kernel, context, messages=True)

    found = tuple(one for one in build_warnings.added(built, base) if one.is_of(end))
    for one in found:
        context.note_once(f"the compiler warns of {one}")
    return found


def build(
    recipe: Recipe,
    kernel: Kernel,
    context: BuildContext,
    *,
    messages: bool | None = None,
    with_counters: bool = False,
) -> Path:
    """A directory with both drivers, made for `kernel` as the recipe says.

    With `messages` (by default where somebody asked for patches) it has the compiler's, too
    (`build_warnings`); `with_counters`: and what emu.images.counted describes. Both have DWARF
    and a build id. Raises InputError for a patch that does not apply, or a source that does not
    compile.
    """
    if kernel.tree is None:
        require_buildable(spec(kernel.name))
    config = kernel.config.read_text()
    toolchain = kbuild.find_toolchain(config)
    other = kbuild.other_compiler(toolchain, config)
    inputs: dict[str, JSON] = {
        "kernel": kernel.root.name,
        "source": recipe.source.digest,
        "patches": [patch.key for patch in recipe.patches],
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
        **({"messages": 1} if (recipe.more if messages is None else messages) else {}),
        **({"counted": counted.key()} if with_counters else {}),
    }

    def make(made: Path) -> None:
        with (
            context.progress.stage(f"building the drivers for {kernel.release}"),
            kbuild.workplace(context.cache, "drivers") as scratch,
        ):
            if other is not None:
                context.progress.note(f"drivers for {kernel.release} by {other}")
            tree = scratch / "source"
            recipe.copy(tree, context)
            versions = apply_all(recipe, tree, context)
            unpack_devel(kernel, scratch, context.progress)
            try:
                output = compile_drivers(
                    kernel, scratch, toolchain, context.progress, "--output-sync=target",
                    flags=counted.flags(scratch) if with_counters else (),
                )  # fmt: skip
            except kbuild.BuildFailed as failed:
                raise explained(failed, recipe, kernel, versions) from None
            for end, built in compiled(scratch, kernel).items():
                shutil.copy(built, made / f"{MODULE[end]}.ko")
            if with_counters:
                counted.keep(tree / _WHERE, made)
            build_warnings.keep(output, versions, made)

    return context.entry(COUNTED if with_counters else "drivers", inputs, make)


def unpack_devel(kernel: Kernel, place: Path, progress: Progress) -> None:
    """Unpack what modules of `kernel` are built against, as `place`/devel."""
    devel = place / "devel"
    devel.mkdir()
    progress.tick("unpacking the headers")
    # Half of the files are empty ones, one an option, by which make sees what has changed since
    # an earlier build.
    options = "--exclude=*/include/config/[A-Z0-9]*"
    command = ["tar", "-x", "-f", str(kernel.devel), "-C", str(devel), options]
    run(command, f"cannot unpack {kernel.devel}", lines=3, progress=progress)


def compile_drivers(
    kernel: Kernel,
    place: Path,
    toolchain: kbuild.Toolchain,
    progress: Progress,
    *more: str,
    flags: Sequence[str] = (),
    steps: int = _STEPS,
) -> list[str]:
    """Build both drivers from `place`/source against `place`/devel; what make printed.

    `more` are further arguments of make, `flags` further ones of the compiler, `steps` about how
    many steps make prints. Raises InputError with the compiler's errors.
    """
    source = place / "source" / _WHERE
    include = place / "source/include"
    # Before the kernel's own directories, so that a header of the source is taken, not theirs.
    own = f"LINUXINCLUDE := -I{os.path.realpath(include)} $(LINUXINCLUDE)\n"
    more_flags = f"subdir-ccflags-y := {' '.join(flags)}\n" if flags else ""
    (source / "Kbuild").write_text(_KBUILD + (own if include.is_dir() else "") + more_flags)
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
