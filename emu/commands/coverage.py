"""`emu coverage`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from emu.commands.options import Commands, add_locked_option, build_context, count, show, table
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.images.cache import Cache
from emu.images.patched import VARIABLES
from emu.progress import Progress
from emu.screen import fail
from emu.suite import coverage_run, coverage_table, left_out
from emu.suite.coverage import Coverage, read_coverage
from emu.suite.coverage_run import Ran
from emu.suite.coverage_share import Share, shares_of, total_of
from emu.suite.left_out import Account, Missing

_EPILOG = """exit status: 0 all tests passed, and no entry of the file of reasons is stale; 1
otherwise; 3 no test on the drivers; 125 the rig broke; 130 interrupted. What each test reached is
kept: the next run goes on where this one ended. Branches count where the source decides: in the
conditions of if, while, for, switch and loop macros, and at &&, || and ?:"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "coverage",
        help="which lines and branches of the drivers do the tests reach?",
        description="Run the tests on drivers with gcc's counters (series applied, Linux 6.1), and "
        "print how much of each file they reach, with all that was recorded before.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--jobs", type=count, default=min(4, len(os.sched_getaffinity(0))), metavar="N",
        help="tests side by side (default: one for each processor, 4 at most)",
    )  # fmt: skip
    parser.add_argument("--no-run", action="store_true", help="run nothing: print what is recorded")
    parser.add_argument("--again", action="store_true", help="forget all records first")
    parser.add_argument(
        "--missing", action="store_true",
        help="print the lines and branches that no test reaches, with what they say",
    )  # fmt: skip
    parser.add_argument(
        "--left-out", type=Path, metavar="FILE",
        help="reasons for what is not reached (default tests/coverage-left-out.toml)",
    )  # fmt: skip
    parser.add_argument(
        "--write-table", action="store_true",
        help="write tests/driver-coverage.json, for `emu tests-for FILE:FUNCTION`",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON at the end")
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT",
        help="for pytest, after a `--`: -- -m long (default: tests/system -m drivers)",
    )  # fmt: skip
    add_locked_option(parser)
    parser.set_defaults(command=_coverage)


def _coverage(arguments: argparse.Namespace) -> int:
    for name in VARIABLES:
        os.environ.pop(name, None)  # it is about our series
    entries = left_out.read(arguments.left_out or left_out.own_file())
    cache = Cache()
    ran = Ran((), ())
    if not arguments.no_run:
        ran = coverage_run.run(cache, arguments.arguments, arguments.jobs, again=arguments.again)
    coverage = read_coverage(cache)
    account = left_out.account(coverage, entries)
    if arguments.write_table:
        drivers = coverage_table.drivers_digest(build_context(Progress()))
        made = coverage_table.of_coverage(coverage, drivers)
        coverage_table.own_file().write_text(coverage_table.render(made))
    shares = shares_of(coverage)
    if arguments.json:
        print(json.dumps(as_json(coverage, shares, account, ran), indent=1))
    else:
        _show(coverage, shares, account)
        if arguments.missing:
            _show_missing(coverage, account)
    if problems := _problems(account, ran):
        fail("\n".join(problems))
        return EXIT_NOT_HELD
    return EXIT_HELD


def as_json(
    coverage: Coverage, shares: Mapping[str, Share], account: Account, ran: Ran
) -> dict[str, Any]:
    """The result for scripts."""
    return {
        "source": coverage.source,
        "tests": len(coverage.tests),
        "failed": [{"test": one.test, "outcome": one.outcome} for one in ran.failed],
        "files": {
            file: {
                name: {"reached": reached, "all": there}
                for name, (reached, there) in vars(share).items()
            }
            for file, share in shares.items()
        },
        "missing": [
            {
                "file": one.file,
                "line": one.line,
                "function": one.function,
                "text": one.text,
                "branches": list(one.branches),
                "reason": one.reason,
            }
            for one in account.missing
        ],
        "stale": [{"entry": str(entry), "why": why} for entry, why in account.stale],
    }


def _show(coverage: Coverage, shares: Mapping[str, Share], account: Account) -> None:
    numbers = ("lines", "", "branches", "", "functions", "")
    rows = table("file", *numbers, right=numbers)
    for file, share in shares.items():
        rows.add_row(escape(file), *_cells(share))
    rows.add_row("both drivers", *_cells(total_of(shares.values())))
    show(rows)
    print(f"reached by {len(coverage.tests)} tests")
    open_ = account.without_reason()
    known = [one for one in account.missing if one.reason is not None]
    print(f"left out with a reason:  {_amount(known)}")
    print(f"without a reason:        {_amount(open_)}")


def _cells(share: Share) -> list[str]:
    pairs = (share.lines, share.branches, share.functions)
    return [cell for some, all_ in pairs for cell in (f"{some}/{all_}", _percent(some, all_))]


def _percent(some: int, all_: int) -> str:
    return f"{100 * some / all_:.1f} %" if all_ else "–"


def _amount(missing: list[Missing] | tuple[Missing, ...]) -> str:
    lines = sum(not one.branches for one in missing)
    branches = sum(len(one.branches) for one in missing)
    return f"{lines} lines, {branches} branches"


def _show_missing(coverage: Coverage, account: Account) -> None:
    entered = {
        (file, function.name)
        for file in coverage.files
        for line in coverage.covered_lines(file)
        if (function := coverage.places(file).at(line)) is not None
    }
    where = ("", "")
    for one in account.missing:
        if (one.file, one.function) != where:
            where = one.file, one.function
            never = "" if where in entered else " is never entered"
            print(f"\n{one.file}:{one.function}{never}")
        what = f"branch {', '.join(map(str, one.branches))} of" if one.branches else "line"
        reason = f"    ({one.reason})" if one.reason else ""
        print(f"  {one.line:5} {what:14} {one.text}{reason}")


def _problems(account: Account, ran: Ran) -> list[str]:
    return [
        *(f"{one.outcome}: {one.test}" for one in ran.failed),
        *(f"stale entry: {entry}: {why}" for entry, why in account.stale),
    ]
