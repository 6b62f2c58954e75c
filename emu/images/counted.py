"""Drivers with gcc's counters in them: for each arc between basic blocks how often it was taken.

Only the drivers' own objects are built that way, for a kernel as it is: it needs no
CONFIG_GCOV_KERNEL. guest-images/coverage/ has what that takes in a guest.

    xen-blkfront.ko, xen-blkback.ko
    counted/…                   the drivers' source, as it was built, and gcc's notes (.gcno)
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from emu import paths
from emu.images import kbuild
from emu.images.manifest import JSON

FOLDER = "counted"
"""Where an entry of such drivers keeps source and notes."""
_HEADER = "counted.h"
_FLAGS = (
    "-fprofile-arcs",
    "-ftest-coverage",
    # No constructors, which only a kernel with CONFIG_CONSTRUCTORS would call.
    "-fprofile-info-section",
    # Two processors of a guest count in the same place.
    "-fprofile-update=atomic",
    # What happens to the code before the counters are put in should leave the source's lines and
    # branches as they are: no function in place of its call, no branch twice or turned into
    # arithmetic, no two conditions in one.
    "-fno-early-inlining",
    "-fno-thread-jumps",
    "-fno-ssa-phiopt",
    "-fno-tree-switch-conversion",
    "-fno-tree-loop-im",
    "-fno-partial-inlining",
    "--param=logical-op-non-short-circuit=0",
)
_RECIPE = 1
"""Raised when the way counted drivers are built changes the outcome; a part of cache keys."""


def folder() -> Path:
    """The directory of the C sources: a header for drivers, a module for the guest."""
    return paths.guest_images() / "coverage"


def flags(place: Path) -> tuple[str, ...]:
    """Flags for gcc (11 or later) that put counters into what it compiles.

    The header they name is copied to `place`, a directory whose path kbuild can take.
    """
    return (*_FLAGS, "-include", str(shutil.copy(folder() / _HEADER, place)))


def key() -> list[JSON]:
    """What such a build depends on besides the drivers: a part of cache keys."""
    return [_RECIPE, *_FLAGS, *kbuild.digest([folder() / _HEADER])]


def keep(source: Path, into: Path) -> None:
    """Copy the drivers' source and gcc's notes below `source`, the place of a build."""
    for path in sorted(source.rglob("*")):
        if path.suffix in (".c", ".h", ".gcno") and not path.name.endswith(".mod.c"):
            target = into / FOLDER / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def source_digest(entry: Path) -> str:
    """SHA-256 of the drivers' source in an entry: names and contents."""
    found = hashlib.sha256()
    for path in sources(entry):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(entry / FOLDER)} {content}\n".encode())
    return found.hexdigest()


def sources(entry: Path) -> list[Path]:
    """The source files of the drivers in an entry, in order."""
    return sorted(path for path in (entry / FOLDER).rglob("*") if path.suffix in (".c", ".h"))
