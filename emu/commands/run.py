"""`emu run`."""

from __future__ import annotations

import argparse
import json

from emu.commands.driver_options import context_for
from emu.commands.options import (
    EPILOG,
    Commands,
    add_driver_options,
    add_stack_options,
    wish_from_options,
)
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.lab import report as reports
from emu.lab import run as runs
from emu.screen import Screen, fail
from emu.stack.wish import DATA_MIB, RunWish
from emu.xen.disk import parse_disk


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "run",
        help="attach a disk over the drivers, show ring and grants, transfer data",
        description="Start the stack, load the drivers, attach the LUN, write and read back, "
        "detach, and report what held.",
        epilog=EPILOG,
    )
    add_driver_options(parser, reads_input=True)
    parser.add_argument(
        "--data",
        type=int,
        metavar="MIB",
        help=f"default {DATA_MIB}, or what fits into the domU",
    )
    add_stack_options(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    wish = RunWish(
        stack=wish_from_options(arguments, arguments.ring_pages),
        ring_pages=arguments.ring_pages,
        front=arguments.front,
        back=arguments.back,
        data_mib=arguments.data,
        disk=parse_disk(arguments.disk),
    )
    with Screen() as screen:
        report = runs.perform(wish, context_for(arguments, screen))
    if arguments.json:
        print(json.dumps(reports.as_json(report), indent=2))
    else:
        print("\n".join(reports.lines(report)))
    for check in report.checks:
        if not check.held:
            fail(f"did not hold: {check.name} ({check.seen})")
    return EXIT_HELD if report.held else EXIT_NOT_HELD
