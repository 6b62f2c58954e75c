"""Which tests reach a function of the drivers: tests/driver-coverage.json, made by `emu coverage`.

It is part of the checkout, so that `emu tests-for` needs no run. Each function has its first and
last line, and its tests by how many of its lines they reach:

    "xen-blkfront.c:blkif_completion": [[1700, 1785], {"41": [3, 17], "12": [0]}]

The numbers are indices of `tests`, whose seconds are in `seconds`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.images import kbuild
from emu.images.context import BuildContext
from emu.images.driver_source import package_source
from emu.images.kernel_specs import own_series, spec
from emu.suite.coverage import Coverage, TestSeconds

KERNEL = "debian-6.1"
"""The kernel whose drivers, with the series, the table is about."""


@dataclass(frozen=True)
class Place:
    """A function of a file, or a line of one."""

    file: str
    function: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"


@dataclass(frozen=True)
class Reaching:
    """A test that reaches a function: its seconds, and how many of its lines with code."""

    seconds: float
    test: str
    lines: int


@dataclass(frozen=True)
class Table:
    """Functions and their tests, of drivers whose digest is `drivers`."""

    drivers: str
    functions: Mapping[Place, tuple[Reaching, ...]]

    def find(self, wanted: str) -> Place:
        """The function that "FILE:FUNCTION", "FILE:LINE" or "FUNCTION" names.

        A file may be named without its folder. Raises InputError, with what is like it.
        """
        file, colon, name = wanted.rpartition(":")
        there = [one for one in self.functions if not colon or f"/{one.file}".endswith(f"/{file}")]
        if not there:
            files = sorted({one.file for one in self.functions})
            raise InputError(f"there is no file {file}", hint=f"there are: {', '.join(files)}")
        if name.isdecimal():
            found = [one for one in there if one.first <= int(name) <= one.last]
            if not found:
                raise InputError(f"line {name} of {file} is in no function that has code")
            return found[0]
        found = [one for one in there if one.function == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{name} is in several files", hint=", ".join(map(str, found)))
        like = sorted(str(one) for one in there if name.lower() in one.function.lower())
        raise InputError(
            f"there is no function {name}" + (f" in {file}" if colon else ""),
            hint=f"like it: {', '.join(like[:8])}" if like else None,
        )

    def is_of(self, drivers: str) -> bool:
        """Whether it was made with these drivers."""
        return self.drivers == drivers


def own_file() -> Path:
    """The table of the checkout. Raises InputError where there is none."""
    return paths.checkout("emu tests-for") / "tests/driver-coverage.json"


def drivers_digest(context: BuildContext) -> str:
    """A digest of the drivers as the checkout has them: the kernel's source and the series."""
    wanted = spec(KERNEL)
    source = package_source(wanted, context)
    found = hashlib.sha256(source.origin.encode())
    for patch in kbuild.series(own_series(), wanted.version):
        found.update(f" {patch.name} {hashlib.sha256(patch.read_bytes()).hexdigest()}".encode())
    return found.hexdigest()


def of_coverage(coverage: Coverage, drivers: str) -> Table:
    """The table of what was recorded; `drivers` is their digest."""
    functions: dict[Place, tuple[Reaching, ...]] = {}
    reached = {one: coverage.lines_reached(one.test) for one in coverage.tests}
    for file, outline in coverage.files.items():
        for function in coverage.places(file).all:
            code = outline.code & set(range(function.first, function.last + 1))
            if not code:
                continue
            counted = (
                (one, len(code & lines.get(file, frozenset()))) for one, lines in reached.items()
            )
            place = Place(file, function.name, function.first, function.last)
            functions[place] = _sorted(
                Reaching(one.seconds, one.test, n) for one, n in counted if n
            )
    return Table(drivers, functions)


def of_line(coverage: Coverage, place: Place, line: int) -> tuple[TestSeconds, ...]:
    """The tests that reach a line of a file, quickest first."""
    return coverage.tests_reaching(place.file, line)


def _sorted(found: Any) -> tuple[Reaching, ...]:
    return tuple(sorted(found, key=lambda one: (one.seconds, -one.lines, one.test)))


def render(table: Table) -> str:
    """The text of a table's file, the same for the same table."""
    tests = sorted({one.test for found in table.functions.values() for one in found})
    index = {test: number for number, test in enumerate(tests)}
    seconds = {one.test: one.seconds for found in table.functions.values() for one in found}
    functions = {}
    for place, found in sorted(table.functions.items(), key=lambda item: str(item[0])):
        by_lines: dict[int, list[int]] = {}
        for one in found:
            by_lines.setdefault(one.lines, []).append(index[one.test])
        grouped = {str(lines): sorted(by_lines[lines]) for lines in sorted(by_lines, reverse=True)}
        functions[str(place)] = [[place.first, place.last], grouped]
    rows = ",\n".join(f"  {json.dumps(name)}: {_compact(one)}" for name, one in functions.items())
    return (
        f'{{\n"drivers": {json.dumps(table.drivers)},\n'
        f'"tests": {json.dumps(tests, indent=1)},\n'
        f'"seconds": {_compact([round(seconds[test], 1) for test in tests])},\n'
        f'"functions": {{\n{rows}\n}}\n}}\n'
    )


def read(path: Path) -> Table:
    """The table in a file. Raises InputError where there is none that can be read."""
    try:
        made = json.loads(path.read_text())
        functions = {}
        for name, ((first, last), grouped) in made["functions"].items():
            file, _, function = name.rpartition(":")
            functions[Place(file, function, first, last)] = _sorted(
                Reaching(made["seconds"][n], made["tests"][n], int(lines))
                for lines, numbers in grouped.items()
                for n in numbers
            )
        return Table(made["drivers"], functions)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} can't be read: {error}", hint="emu coverage --write-table makes it"
        ) from None


def _compact(made: object) -> str:
    return json.dumps(made, separators=(",", ":"))
