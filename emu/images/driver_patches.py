"""Patches for the two drivers: which files they may change, and which end they change.

Built outside a kernel are the front end's file, the back end's folder, and the header of their
protocol, which only they include. A patch that changes more needs a kernel built from a tree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emu.errors import InputError
from emu.images import kbuild
from emu.images.driver_source import BACK, FRONT, HEADER
from emu.images.patch_files import Note, Patch, read_patch, read_patches
from emu.images.patched import End, PatchedDrivers

_DOCUMENTS = ("Documentation/", "MAINTAINERS", "CREDITS", ".mailmap")
_IN_BACK = {"blkback.c", "common.h", "xenbus.c"}
_PLACES = re.compile(rf"(?:^|/)((?:{re.escape('drivers/block/xen-blk')}|{re.escape(HEADER)}).*)$")
_SHOWN = 3


def driver_patch(path: Path) -> Patch:
    """The one patch of a file of ours: of the series, a mutant."""
    return read_patch(path, in_kernel)


def driver_patches(asked: PatchedDrivers, version: str, note: Note) -> tuple[Patch, ...]:
    """The patches that somebody asks for, in order, without what touches documents alone.

    `version` ("6.12") selects variants where a directory has some, as our series does. Raises
    InputError for what is not there, is no patch, or changes what can't be built here.
    """
    found: list[Patch] = []
    for path in asked.patches:
        files = [path]
        if version and any((path / version).glob("*.patch")):
            files = list(kbuild.series(path, version))
        found += read_patches(files, note, in_kernel)
    kept = [left for patch in found if (left := _of_drivers(patch, note)) is not None]
    if found and not kept:
        raise InputError(
            f"no patch of {', '.join(map(str, asked.patches))} changes a driver",
            hint=f"the drivers are {FRONT} and {BACK}",
        )
    return tuple(kept)


def ends_of(patches: Sequence[Patch]) -> tuple[End, ...]:
    """The ends that patches change."""
    names = {name for patch in patches for name in patch.names}
    touched: dict[End, bool] = {
        "front": bool(names & {FRONT, HEADER}),
        "back": HEADER in names or any(name.startswith(BACK) for name in names),
    }
    return tuple(end for end, is_touched in touched.items() if is_touched)


def in_kernel(name: str) -> str:
    """The name in a kernel tree of a file that a diff names.

    Diffs are made in many places: a/drivers/block/…, linux-7.3.orig/drivers/block/…, without any
    prefix, or inside drivers/block/.
    """
    name = re.sub(r"(\.orig|\.old|~)$", "", name)
    if found := _PLACES.search(name):
        return found[1]
    first, _, rest = name.partition("/")
    bare = rest if first in ("a", "b", ".") or first.startswith("linux") else name
    if bare == Path(FRONT).name:
        return FRONT
    if bare in _IN_BACK:
        return BACK + bare
    return f"drivers/block/{bare}" if bare.startswith("xen-blkback/") else bare


def _of_drivers(patch: Patch, note: Note) -> Patch | None:
    """A patch without its changes of documents; None if there are no others."""
    kept = [diff for diff in patch.diffs if not diff.name.startswith(_DOCUMENTS)]
    left_out = [diff.name for diff in patch.diffs if diff not in kept]
    if left_out:
        note(f"{patch}: {_list(left_out)} left out (no driver)")
    others = [
        name
        for diff in kept
        for name in diff.names
        if name not in (FRONT, HEADER) and not name.startswith(BACK)
    ]
    if others:
        raise InputError(
            f"{patch} changes {_list(others)}, and the drivers alone are built here",
            hint="a kernel with all of a change is built from a tree: apply it there, --tree DIR",
        )
    return replace(patch, diffs=tuple(kept)) if kept else None


def _list(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
