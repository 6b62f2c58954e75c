"""`emu mutants`."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from rich.markup import escape

from emu.commands import sampled
from emu.commands.options import Commands, add_locked_option, count, show, table
from emu.errors import EXIT_HELD, EXIT_INPUT, EXIT_NOT_HELD, EXIT_RIG, InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import VARIABLES
from emu.screen import Screen, fail
from emu.suite import mutants
from emu.suite.mutants import Judged, Verdict
from emu.suite.mutation import survey

_EPILOG = """Exit status: 0 all killed; 1 one survived; 3 one does not apply, does not build, or
names a test that does not pass without it; 125 the rig broke; 130 interrupted. Outcomes are
kept: the next run goes on where this one ended.

With --sample, mutants made by machine: C operators over all lines of both drivers that a test
reaches. Each is judged by the tests that reach it, the likeliest first, up to the first that
fails. MUTANT is then an id, a function or a pattern, and only those of the sample are judged"""


_SHOWN = 160
"""Characters of a message in the table; it was printed in full before."""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "mutants",
        help="does the suite catch known flaws? run its tests on drivers with one flaw each",
        description="Build the drivers with each patch of tests/mutants/ on top of the series, "
        "run the tests that are to catch it, and report killed or survived.",
        epilog=_EPILOG,
    )
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="by name or pattern: 'grants-*'")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR",
        help="where the patches are (default tests/mutants)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=count, default=1, metavar="N", help="how many at once")
    parser.add_argument("--again", action="store_true", help="ignore kept outcomes")
    parser.add_argument(
        "--baseline", action="store_true", help="only check that the tests pass without a mutant"
    )
    parser.add_argument("--list", action="store_true", help="print them and the tests; run nothing")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_locked_option(parser)
    made = parser.add_argument_group("mutants made by machine")
    made.add_argument("--sample", type=count, metavar="N", help="judge N of them, drawn at random")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="which N (default 1)")
    made.add_argument("--driver", choices=("front", "back"), help="of this driver alone")
    made.add_argument(
        "--limit", type=float, default=survey.LIMIT, metavar="SECONDS",
        help="time of tests for one mutant (default %(default)g): what has passed that survives",
    )  # fmt: skip
    made.add_argument(
        "--tests", nargs="+", metavar="TEST",
        help="judge by these tests, on all lines (default: by those that reach the line)",
    )  # fmt: skip
    made.add_argument("--show", metavar="ID", help="print a mutant as a patch; run nothing")
    parser.set_defaults(command=_mutants)


def _mutants(arguments: argparse.Namespace) -> int:
    for name in VARIABLES:
        os.environ.pop(name, None)  # mutants are of our series
    if arguments.show is not None:
        return sampled.show_patch(arguments.show)
    if arguments.sample is not None:
        if arguments.directory is not None or arguments.baseline:
            raise InputError("--directory and --baseline are for mutants that are files")
        return sampled.run(arguments)
    own = mutants.own_mutants()  # others', too, are judged by the checkout's tests
    wish = mutants.MutantsWish(
        arguments.directory or own,
        tuple(arguments.names),
        arguments.jobs,
        arguments.again,
        arguments.baseline,
    )
    if arguments.list:
        rows = table("mutant", "driver", "flaw", "caught by")
        for one in mutants.find(wish):
            cells = (one.name, " ".join(one.ends), one.flaw, " ".join(one.caught_by))
            rows.add_row(*map(escape, cells))
        show(rows)
        return EXIT_HELD
    with Screen() as screen:
        results = mutants.perform(
            wish, BuildContext(Cache(), screen), lambda one: screen.note(_described(one))
        )
    if arguments.json:
        print(json.dumps([as_json(one) for one in results], indent=2))
    else:
        _show(results)
    counts = Counter(one.verdict for one in results)
    if counts[Verdict.KILLED] < len(results):
        fail(", ".join(f"{number} {verdict.value}" for verdict, number in counts.items()))
    return status(results)


def status(results: Sequence[Judged]) -> int:
    """The command's exit status: a survivor counts before what could not be judged."""
    verdicts = {one.verdict for one in results}
    for verdict, number in (
        (Verdict.SURVIVED, EXIT_NOT_HELD),
        (Verdict.SPOILT, EXIT_INPUT),
        (Verdict.RIG, EXIT_RIG),
    ):
        if verdict in verdicts:
            return number
    return EXIT_HELD


def as_json(one: Judged) -> dict[str, object]:
    """One result, for scripts."""
    return {
        "mutant": one.mutant.name,
        "flaw": one.mutant.flaw,
        "drivers": one.mutant.ends,
        "verdict": one.verdict.value,
        "test": one.test,
        "message": one.line,
        "seconds": round(one.seconds, 1),
    }


def _described(one: Judged) -> str:
    by = f" by {one.test}" if one.test else ""
    return f"{one.verdict.value:9} {one.mutant.name}{by} ({one.seconds:.0f} s)\n    {one.line}"


def _show(results: Sequence[Judged]) -> None:
    rows = table("", "mutant", "by", "message")
    for one in results:
        line = shorten(one.line.split("\n", 1)[0], _SHOWN, placeholder=" …")
        rows.add_row(*map(escape, (one.verdict.value, one.mutant.name, one.test, line)))
    show(rows)
