"""What drivers called `patched` are built from: a source, the series or not, more patches."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emu.errors import InputError
from emu.images import kbuild
from emu.images.context import BuildContext
from emu.images.driver_patches import driver_patch, driver_patches, ends_of
from emu.images.driver_source import HEADER, DriverSource, TreeSource, package_source, read_tree
from emu.images.kernel_specs import own_series, require_buildable, require_series, spec
from emu.images.kernels import Kernel
from emu.images.patch_files import Patch
from emu.images.patched import Base, End, PatchedDrivers
from emu.images.patching import PatchRefused, apply, fits
from emu.images.series_fit import fit, series_for
from emu.images.source_tree import Tree


@dataclass(frozen=True)
class Recipe:
    """A source, the base of the patches that somebody asks for, and these (`more`).

    `series` is the kernel's, applied where it is the base.
    """

    source: DriverSource
    base: Base
    series: tuple[Patch, ...]
    more: tuple[Patch, ...]

    @property
    def patches(self) -> tuple[Patch, ...]:
        """All that are applied, in order."""
        return (*(self.series if self.base == "series" else ()), *self.more)

    def copy(self, into: Path, context: BuildContext) -> None:
        """Write the source that the patches are applied to below `into`."""
        self.source.copy(into, context, header=any(HEADER in one.names for one in self.patches))

    @property
    def plain(self) -> bool:
        """Whether it is what the kernel's own modules were built from."""
        return not self.patches and not isinstance(self.source, TreeSource)

    def of(self, end: End) -> Recipe:
        """What one end is built from: without more patches where none of them changes it."""
        return self if end in ends_of(self.more) else replace(self, more=())

    def __str__(self) -> str:
        count = len(self.more)
        parts = []
        if isinstance(self.source, TreeSource):
            parts.append(f"tree {self.source.origin} ({self.source.state})")
        if self.base == "series":
            parts.append("series")
        elif not parts:
            parts.append("stock")
        if count:
            parts.append(f"{count} patch{'es' if count > 1 else ''}")
        return " + ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """For scripts: the base, the patches after it, and the tree where it is one."""
        made: dict[str, Any] = {
            "base": self.base,
            "source": self.source.origin,
            "linux": self.source.release,
            "patches": [
                {"file": patch.file, "subject": patch.subject, "sha256": patch.sha256}
                for patch in self.more
            ],
        }
        if isinstance(self.source, TreeSource):
            git = self.source.git
            made["tree"] = {
                "commit": git.commit if git else None,
                "dirty": git.dirty if git else None,
                "sha256": self.source.digest,
            }
        return made


def recipe_for(kernel: Kernel, context: BuildContext) -> Recipe:
    """What `patched` drivers of a kernel are built from, as `context.patched` asks.

    Raises InputError for a kernel that no series is made for, a directory that is no tree, a
    patch that is none.
    """
    asked = context.patched
    own = source_of(kernel, context)
    source = _tree(asked.tree) if asked.tree is not None else own
    if kernel.tree is not None and asked.on is None:
        return Recipe(source, "stock", (), _more(asked, source.version))
    series = tuple(map(driver_patch, _series(kernel, source, asked.base, context)))
    return Recipe(source, asked.base, series, _more(asked, source.version))


def _series(
    kernel: Kernel, source: DriverSource, base: Base, context: BuildContext
) -> tuple[Path, ...]:
    """The series for a source; where it is not the base, what its release line would have."""
    if isinstance(source, TreeSource):
        if base != "series":
            return kbuild.series(own_series(), source.version)
        with context.cache.scratch("series") as scratch:
            source.copy(scratch, context)
            return fit(own_series(), source.version, scratch)
    wanted = spec(kernel.name)
    if base == "series":
        require_series(wanted)
    if wanted.driver_patches is None:
        return ()
    if base != "series":
        return kbuild.series(wanted.driver_patches, wanted.version)
    return series_for(wanted, wanted.driver_patches, context)


def source_of(kernel: Kernel, context: BuildContext) -> DriverSource:
    """Where the source of a kernel's own drivers comes from. InputError if that is not known."""
    if kernel.tree is not None:
        return _of_tree(kernel.tree)
    if kernel.flavour == "given":
        raise InputError(f"no drivers are built for {kernel.name}", hint="give them as .ko")
    wanted = spec(kernel.name)
    require_buildable(wanted)
    return package_source(wanted, context, kernel.devel)


@functools.lru_cache(maxsize=8)
def _of_tree(tree: Tree) -> DriverSource:
    """That of a tree in the state in which it was read."""
    return read_tree(tree.path)


@dataclass(frozen=True)
class Version:
    """The source after a patch (None: before the first of `Recipe.more`): names and contents."""

    patch: Patch | None
    files: Mapping[str, bytes]


def apply_all(recipe: Recipe, tree: Path, context: BuildContext) -> list[Version]:
    """Apply the patches of a recipe to its source in `tree`, in order.

    The versions are those of the files that `recipe.more` changes. Raises PatchRefused; of one
    of these it says where it would apply.
    """
    names = {name for patch in recipe.more for name in patch.names}

    def version(patch: Patch | None) -> Version:
        there = {name: tree / name for name in names}
        return Version(patch, {n: path.read_bytes() for n, path in there.items() if path.is_file()})

    versions: list[Version] = []
    first = len(recipe.patches) - len(recipe.more)
    for number, patch in enumerate(recipe.patches):
        if number == first:
            versions.append(version(None))
        context.progress.tick(f"applying {patch.file}")
        try:
            apply(patch, tree)
        except PatchRefused as refused:
            if number < first:
                raise
            if there := _in_series(recipe, patch):
                raise there from None
            if where := _elsewhere(recipe, number, context):
                refused.hint = f"{where}; {refused.hint}" if refused.lines else where
            raise
        if number >= first:
            versions.append(version(patch))
    return versions


def _in_series(recipe: Recipe, patch: Patch) -> PatchRefused | None:
    """The error for a patch that the series has, where that was applied before it."""
    for place, one in enumerate(recipe.series if recipe.base == "series" else (), 1):
        if _changes(one) == _changes(patch):
            return PatchRefused(
                f"{patch} is in the series already: patch {place} of {len(recipe.series)}",
                hint="on the drivers without the series: --on stock",
            )
    return None


def _elsewhere(recipe: Recipe, number: int, context: BuildContext) -> str | None:
    """Where a later patch that is refused belongs, if that can be told."""
    on_series = recipe.base == "series"
    tried = recipe.patches[len(recipe.patches) - len(recipe.more) : number + 1]
    with context.cache.scratch("patches") as scratch:
        recipe.copy(scratch, context)
        if not fits([*(() if on_series else recipe.series), *tried], scratch):
            return None
    if on_series:
        return "it applies on the unpatched drivers: --on stock"
    return "it applies after our series: --on series"


def _changes(patch: Patch) -> list[tuple[str, tuple[str, ...]]]:
    """The lines a patch adds and removes, by file: what a patch is, wherever it is applied."""
    return [
        (diff.name, tuple(line for hunk in diff.hunks for line in hunk.lines if line[0] in "+-"))
        for diff in patch.diffs
    ]


# Read once in a process, so that both ends of a run are of one moment, though somebody edits.


@functools.lru_cache
def _tree(tree: Path) -> TreeSource:
    return read_tree(tree)


@functools.lru_cache
def _more(asked: PatchedDrivers, version: str) -> tuple[Patch, ...]:
    return driver_patches(asked, version, lambda line: None)
