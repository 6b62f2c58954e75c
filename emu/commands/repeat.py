"""`emu repeat`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rich.markup import escape

from emu import paths
from emu.commands.options import Commands, count, show, table
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.images.cache import Cache
from emu.screen import fail
from emu.suite.passes import Passes, Row

_TIMES = 20


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "repeat",
        help="run the suite until it has passed N times in a row",
        description="Run pytest until it has passed N times in a row, or fails. Passes are kept: "
        "the next run goes on where this one was interrupted, as long as nothing has changed.",
        epilog="exit status: 0 N passes in a row; 1 one failed, and the row is over; "
        "3 pytest ran no tests; 125 it broke; 130 interrupted",
    )
    parser.add_argument(
        "--times", type=count, default=_TIMES, metavar="N", help=f"passes (default {_TIMES})"
    )
    parser.add_argument("--again", action="store_true", help="start a new row")
    parser.add_argument("--json", action="store_true", help="print the passes as JSON at the end")
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="for pytest, after a `--`: -- -n 2"
    )
    parser.set_defaults(command=_repeat)


def _repeat(arguments: argparse.Namespace) -> int:
    passes = Passes(Cache(), arguments.arguments, paths.checkout("emu repeat"))
    if arguments.again:
        passes.forget()
    row = passes.run(arguments.times, lambda what: print(f"== {what}", flush=True))
    if arguments.json:
        print(json.dumps({"broken": row.broken, "passes": [asdict(one) for one in row.passes]}))
    else:
        _show(row)
    if row.broken:
        fail(f"failed after {len(row.passes)} passes in a row")
    return EXIT_NOT_HELD if row.broken else EXIT_HELD


def _show(row: Row) -> None:
    rows = table("pass", "ended", "tests", "seconds")
    for number, one in enumerate(row.passes, 1):
        rows.add_row(*map(escape, (str(number), one.ended, str(one.tests), f"{one.seconds:.0f}")))
    show(rows)
    if not row.broken:
        print(f"{len(row.passes)} passes in a row")
