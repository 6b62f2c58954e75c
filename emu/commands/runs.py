"""`emu runs`: the last runs, how they ended, and where their logs are."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from emu.commands.options import Commands, count, show, table
from emu.errors import EXIT_HELD
from emu.machine import rundir
from emu.machine.runrecord import RunRecord

SHOWN = 25
_COMMAND = 60


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "runs",
        help="the last runs: when, what, how they ended, where their logs are",
        description="List the runs whose logs are still there, the last first: one line for each "
        f"machine that was started. Of those that held the last {rundir.KEEP_LOGS} keep their "
        f"logs, of those that failed, were interrupted or killed the last {rundir.KEEP_FAILED}.",
    )
    parser.add_argument(
        "-n",
        "--number",
        type=count,
        default=SHOWN,
        metavar="N",
        help=f"how many at most (default {SHOWN})",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(command=_runs)


def _runs(arguments: argparse.Namespace) -> int:
    found = rundir.records()[: arguments.number]
    if arguments.json:
        print(json.dumps([_as_json(record) for record in found], indent=2))
        return EXIT_HELD
    rows = table("when", "ended", "took", "directory", "command", right=["took"])
    for record in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.began))
        took = "–" if record.seconds is None else f"{record.seconds:.0f} s"
        rows.add_row(when, record.outcome, took, str(record.path), _short(record.command))
    show(rows)
    if not found:
        print("no run has left logs")
    return EXIT_HELD


def _short(command: str) -> str:
    return command if len(command) <= _COMMAND else f"{command[: _COMMAND - 1]}…"


def _as_json(record: RunRecord) -> dict[str, Any]:
    """As JSON: times in seconds, `began` as a Unix time."""
    seconds = None if record.seconds is None else round(record.seconds, 3)
    return {
        **vars(record),
        "path": str(record.path),
        "began": round(record.began, 3),
        "seconds": seconds,
    }
