"""From a driver's counters to its lines and branches, by gcov and the notes of the build.

gcov wants counters as a file (.gcda); the format is that of gcc/gcov-io.h: words of 4 bytes, a
record for each function (its identity) and one for its counters.
"""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.errors import InputError, RigError
from emu.images import counted
from emu.images.cache import Cache
from emu.images.modules import COUNTED
from emu.runprogram import run
from emu.xen.driver_counters import Unit

_DATA, _NOTES = 0x67636461, 0x67636E6F
"""The magic numbers of both kinds of file: "gcda", "gcno"."""
_FUNCTION, _ARCS = 0x01000000, 0x01A10000
"""The tags of both kinds of record."""
_WITH_CHECKSUM = 12
"""The version of gcc since which the head has a checksum, and lengths are of bytes, not words."""
WHERE = "drivers/block"
"""Where the drivers' source is in a kernel tree: names are relative to that."""


@dataclass(frozen=True)
class FileCounts:
    """A source file of a driver: how often each line ran, and each branch of a line was taken.

    By line number. A line without code is in neither; one without branches only in `lines`.
    """

    lines: Mapping[int, int]
    branches: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Build:
    """A build of drivers with counters: an entry of the cache, and the digest of its source."""

    entry: Path
    source: str

    @property
    def key(self) -> str:
        """The entry's key in the cache."""
        return self.entry.name

    def notes(self) -> Iterable[Path]:
        """gcc's notes, of each source file one."""
        return (self.entry / counted.FOLDER).rglob("*.gcno")

    def text(self) -> dict[str, list[str]]:
        """The lines of the drivers' source, by file."""
        top = self.entry / counted.FOLDER
        return {
            str(path.relative_to(top)): path.read_text().splitlines()
            for path in counted.sources(self.entry)
        }


def build_of(unit: Unit, cache: Cache) -> Build:
    """The build whose counters these are. Raises RigError when it is not in the cache any more."""
    builds = _builds(cache)
    if unit.notes not in builds:
        _builds.cache_clear()  # it may have been made since
        builds = _builds(cache)
    try:
        return builds[unit.notes]
    except KeyError:
        raise RigError(f"no build in the cache has the notes for {unit.file}") from None


@functools.lru_cache(maxsize=1)
def _builds(cache: Cache) -> Mapping[tuple[str, int], Build]:
    found = {}
    for entry in (cache.root / COUNTED).glob("*/"):
        if (entry / counted.FOLDER).is_dir():
            build = Build(entry, counted.source_digest(entry))
            found.update({(notes.name, stamp_of(notes)): build for notes in build.notes()})
    return found


def stamp_of(notes: Path) -> int:
    """The stamp in gcc's notes, which the counters of the same build have, too."""
    magic, _, stamp = struct.unpack("<3I", notes.read_bytes()[:12])
    if magic != _NOTES:
        raise RigError(f"{notes} holds no notes of gcc")
    return int(stamp)


def release_of(version: int) -> int:
    """gcc's major release of a version in its files: 12 of the letters "B22*"."""
    letter, digit = chr(version >> 24), chr(version >> 16 & 0xFF)
    return (ord(letter) - ord("A")) * 10 + int(digit)


def data_file(unit: Unit) -> bytes:
    """A unit's counters as gcov takes them."""
    checked = release_of(unit.version) >= _WITH_CHECKSUM
    word = 4 if checked else 1
    head = [_DATA, unit.version, unit.stamp, *([unit.checksum] if checked else [])]
    parts = [struct.pack(f"<{len(head)}I", *head)]
    for function in unit.functions:
        count = len(function.counters)
        parts.append(struct.pack("<5I", _FUNCTION, 3 * word, *function.identity))
        parts.append(struct.pack("<2I", _ARCS, 2 * count * word))
        parts.append(struct.pack(f"<{count}Q", *function.counters))
    return b"".join(parts)


def counts(units: Iterable[Unit], build: Build, cache: Cache) -> dict[str, FileCounts]:
    """The counts of a build's source files, by name; a unit that is not among these has none.

    Raises InputError where gcov is missing, RigError with what it says.
    """
    files: dict[str, FileCounts] = {}
    for name, file in _shown(units, build, cache):
        found = _counts(file)
        files[name] = plus(files[name], found) if name in files else found
    return files


def functions(build: Build, cache: Cache) -> dict[str, dict[str, tuple[int, int]]]:
    """The functions that gcc has kept in a build, by file: first and last line. Raises likewise."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, file in _shown((), build, cache):
        for one in file["functions"]:
            where = (one["start_line"], one["end_line"])
            found.setdefault(name, {})[one["demangled_name"]] = where
    return found


def plus(one: FileCounts, other: FileCounts) -> FileCounts:
    """Both together. Where a line has another number of branches in the other, those of the one
    with more tell (a configuration decides about code inside macros)."""
    lines = dict(one.lines)
    for line, count in other.lines.items():
        lines[line] = lines.get(line, 0) + count
    branches = dict(one.branches)
    for line, taken in other.branches.items():
        known = branches.get(line, ())
        if len(known) == len(taken):
            branches[line] = tuple(a + b for a, b in zip(known, taken, strict=True))
        elif len(known) < len(taken):
            branches[line] = taken
    return FileCounts(lines, branches)


def program(release: int = 0) -> str:
    """The gcov of a release of gcc, or else this machine's. Raises InputError without any."""
    found = next(filter(shutil.which, (f"gcov-{release}", "gcov")), None)
    if found is None:
        raise InputError("gcov is missing on this machine", hint="apt-get install gcc")
    return found


def _shown(units: Iterable[Unit], build: Build, cache: Cache) -> Iterator[tuple[str, Any]]:
    """What gcov shows of the drivers' own files; it has every header that was used, too."""
    top = build.entry / counted.FOLDER
    with cache.scratch("gcov") as place:
        release = 0
        for unit in units:
            (place / unit.file).write_bytes(data_file(unit))
            release = release_of(unit.version)
        for notes in sorted(build.notes()):
            shutil.copy(notes, place)
            for file in _gcov(notes.with_suffix(".gcda").name, release, place)["files"]:
                _, inside, name = file["file"].rpartition(f"{WHERE}/")
                if inside and (top / name).is_file():
                    yield name, file


def _gcov(data: str, release: int, place: Path) -> Any:
    options = ["--json-format", "--branch-probabilities", "--stdout"]
    done = run([program(release), *options, data], f"gcov refuses the counters {data}", cwd=place)
    return json.loads(done.text)


def _counts(file: Any) -> FileCounts:
    lines: dict[int, int] = {}
    branches: dict[int, tuple[int, ...]] = {}
    for line in file["lines"]:
        number = line["line_number"]
        lines[number] = lines.get(number, 0) + line["count"]
        if line["branches"]:
            taken = tuple(branch["count"] for branch in line["branches"])
            branches[number] = (*branches.get(number, ()), *taken)
    return FileCounts(lines, branches)
