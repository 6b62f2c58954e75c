"""`emu tests-for`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape

from emu.commands.options import Commands, build_context, show, table
from emu.errors import EXIT_HELD, InputError
from emu.images.cache import Cache
from emu.progress import Progress
from emu.suite import coverage_table
from emu.suite.coverage import read_coverage
from emu.suite.coverage_table import Place, Reaching, Table

_EPILOG = """It reads tests/driver-coverage.json, which `emu coverage --write-table` makes, and runs
nothing. For a line it has the tests of its function, unless `emu coverage` has run here: then
those that reach the line. Run one: pytest TEST"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "tests-for",
        help="the tests that reach a function or line of the drivers, the quickest first",
        description="Print the tests that reach a function or a line of the drivers (series "
        "applied, Linux 6.1), the quickest first.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "place", metavar="FILE:FUNCTION",
        help="or FILE:LINE, or a function alone: xen-blkfront.c:blkif_completion",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.set_defaults(command=_tests_for)


def _tests_for(arguments: argparse.Namespace) -> int:
    made = coverage_table.read(coverage_table.own_file())
    place = made.find(arguments.place)
    drivers = coverage_table.drivers_digest(build_context(Progress()))
    old = not made.is_of(drivers)
    if old:
        print(
            "the table is older than the drivers: a function may have other lines and tests "
            "(emu coverage --write-table makes it anew)",
            file=sys.stderr,
        )
    found, exact = _found(made, place, arguments.place)
    if arguments.json:
        shown = {
            "file": place.file,
            "function": place.function,
            "lines": [place.first, place.last],
            "of_the_line": exact,
            "table_is_old": old,
            "tests": [asdict(one) for one in found],
        }
        print(json.dumps(shown, indent=1))
        return EXIT_HELD
    about = f"{place} (lines {place.first} to {place.last})"
    if exact:
        about = f"line {arguments.place.rpartition(':')[2]}, in {about}"
    print(f"{about}: {len(found)} tests")
    rows = table("seconds", "lines", "test", right=("seconds", "lines"))
    for one in found:
        rows.add_row(f"{one.seconds:.1f}", str(one.lines), escape(one.test))
    show(rows)
    return EXIT_HELD


def _found(made: Table, place: Place, wanted: str) -> tuple[Sequence[Reaching], bool]:
    """The tests, and whether they are known to reach the line that was asked for."""
    found = made.functions[place]
    line = wanted.rpartition(":")[2]
    if not line.isdecimal():
        return found, False
    try:
        coverage = read_coverage(Cache())
    except InputError:
        return found, False
    here = coverage.places(place.file).at(int(line))
    if here is None or here.name != place.function:
        return found, False  # another source
    if int(line) not in coverage.files[place.file].code:
        raise InputError(f"line {line} of {place.file} has no code", hint=f"{place} has others")
    reaching = {one.test for one in coverage.tests_reaching(place.file, int(line))}
    return [one for one in found if one.test in reaching], True
