"""What each test reached of the drivers: a small file for each test, and one for each build.

    <folder>/tests/<hash of the test's id>.json      a `Record`
    <folder>/builds/<key>.json                       an `Outline`: what there was to reach
    <folder>/chosen.json                             the tests of the last session

Names of files are relative to drivers/block: "xen-blkfront.c", "xen-blkback/xenbus.c".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.images.cache import Cache
from emu.suite import gcov
from emu.suite.csource import deciding_lines
from emu.suite.gcov import Build, FileCounts
from emu.xen.driver_counters import Counted, total

CHOSEN = "chosen.json"
"""The file with the tests of the last session."""
STORE = "coverage"
"""The store of the cache in which `emu coverage` keeps these files."""


@dataclass(frozen=True)
class Reached:
    """What a test reached of one build: the lines that ran and the branches taken, counted.

    `build` is its key in the cache, `source` the digest of its source.
    """

    build: str
    source: str
    files: Mapping[str, FileCounts]


@dataclass(frozen=True)
class Record:
    """A test by its pytest id: how it ended ("passed" and so on), its seconds from set-up to
    tear-down, what it reached. `inputs` is the digest of all that it depended on.
    """

    test: str
    outcome: str
    seconds: float
    inputs: str
    reached: tuple[Reached, ...]


@dataclass(frozen=True)
class FileOutline:
    """A source file: its lines, the numbers of those with code, and how many branches a line has.

    Branches are counted where the source decides (emu.suite.csource.deciding_lines).
    """

    text: tuple[str, ...]
    code: frozenset[int]
    branches: Mapping[int, int]
    functions: Mapping[str, tuple[int, int]]
    """First and last line of each function that gcc has kept; macros make some."""


@dataclass(frozen=True)
class Outline:
    """What there is to reach in one build."""

    build: str
    source: str
    files: Mapping[str, FileOutline]


def reached(counted: Iterable[Counted], cache: Cache, folder: Path) -> tuple[Reached, ...]:
    """What guests have counted, by build; writes the builds' outlines to `folder`.

    Raises RigError and InputError as `gcov.counts`.
    """
    units = total(counted)
    builds = {unit.notes: gcov.build_of(unit, cache) for unit in units}
    found = []
    for build in sorted(set(builds.values()), key=lambda one: one.key):
        of_build = [unit for unit in units if builds[unit.notes] == build]
        outline = _outline(build, cache, folder)
        counts = gcov.counts(of_build, build, cache)
        files = {name: _hit(file, outline.files[name]) for name, file in counts.items()}
        found.append(Reached(build.key, build.source, files))
    return tuple(found)


def _hit(counts: FileCounts, outline: FileOutline) -> FileCounts:
    """Without what was not reached, and without branches that do not count."""
    lines = {line: count for line, count in counts.lines.items() if count}
    branches = {
        line: taken
        for line, taken in counts.branches.items()
        if line in outline.branches and any(taken)
    }
    return FileCounts(lines, branches)


def _outline(build: Build, cache: Cache, folder: Path) -> Outline:
    path = folder / "builds" / f"{build.key}.json"
    if path.exists():
        return read_outline(path)
    found = gcov.counts((), build, cache)
    files = {}
    for name, lines in build.text().items():
        if name in found:
            decides = deciding_lines("\n".join(lines))
            branches = {
                line: len(taken) for line, taken in found[name].branches.items() if line in decides
            }
            functions = gcov.functions(build, cache).get(name, {})
            files[name] = FileOutline(
                tuple(lines), frozenset(found[name].lines), branches, functions
            )
    outline = Outline(build.key, build.source, files)
    _write(path, outline_json(outline))
    return outline


def write(record: Record, folder: Path) -> None:
    """Write a test's record, in place of an older one."""
    _write(place(folder, record.test), _record_json(record))


def place(folder: Path, test: str) -> Path:
    """Where the record of a test is."""
    return folder / "tests" / f"{hashlib.sha256(test.encode()).hexdigest()[:20]}.json"


def read_all(folder: Path) -> Iterator[Record]:
    """The records in a folder, by the test's id; one that can't be read is as if it were not."""
    found = filter(None, map(read, (folder / "tests").glob("*.json")))
    yield from sorted(found, key=lambda record: record.test)


def read(path: Path) -> Record | None:
    """A test's record; None without a readable one."""
    try:
        made = json.loads(path.read_text())
        reached = tuple(
            Reached(one["build"], one["source"], {n: _counts(f) for n, f in one["files"].items()})
            for one in made["reached"]
        )
        return Record(made["test"], made["outcome"], made["seconds"], made["inputs"], reached)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def outlines(folder: Path) -> list[Outline]:
    """The builds that records are about, by key."""
    return [read_outline(path) for path in sorted((folder / "builds").glob("*.json"))]


def read_outline(path: Path) -> Outline:
    """One build's outline."""
    made = json.loads(path.read_text())
    files = {
        name: FileOutline(
            tuple(one["text"]),
            frozenset(one["code"]),
            {int(line): count for line, count in one["branches"].items()},
            {function: (first, last) for function, (first, last) in one["functions"].items()},
        )
        for name, one in made["files"].items()
    }
    return Outline(made["build"], made["source"], files)


def write_chosen(folder: Path, tests: Sequence[str]) -> None:
    """Write which tests a session chose, those that it need not run as well."""
    _write(folder / CHOSEN, list(tests))


def read_chosen(folder: Path) -> list[str]:
    """The tests that the last session in a folder chose; none if it did not get so far."""
    try:
        found: list[str] = json.loads((folder / CHOSEN).read_text())
    except FileNotFoundError:
        return []
    return found


# -- below: the files' form


def _record_json(record: Record) -> dict[str, Any]:
    return {
        "test": record.test,
        "outcome": record.outcome,
        "seconds": record.seconds,
        "inputs": record.inputs,
        "reached": [
            {
                "build": one.build,
                "source": one.source,
                "files": {
                    name: {"lines": dict(file.lines), "branches": dict(file.branches)}
                    for name, file in one.files.items()
                    if file.lines
                },
            }
            for one in record.reached
        ],
    }


def outline_json(outline: Outline) -> dict[str, Any]:
    """An outline as its file has it."""
    return {
        "build": outline.build,
        "source": outline.source,
        "files": {
            name: {
                "text": file.text,
                "code": sorted(file.code),
                "branches": dict(file.branches),
                "functions": dict(file.functions),
            }
            for name, file in outline.files.items()
        },
    }


def _counts(made: Mapping[str, Any]) -> FileCounts:
    lines: Mapping[str, int] = made["lines"]
    branches: Mapping[str, Sequence[int]] = made["branches"]
    return FileCounts(
        {int(line): count for line, count in lines.items()},
        {int(line): tuple(taken) for line, taken in branches.items()},
    )


def _write(path: Path, made: object) -> None:
    """Whole or not at all: workers of one session may write the same outline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(json.dumps(made))
    new.replace(path)
