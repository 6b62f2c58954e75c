"""`emu prepare`."""

from __future__ import annotations

import argparse
import os

from emu.commands.options import Commands, add_locked_option, build_context, count
from emu.errors import EXIT_HELD
from emu.images.cache import Cache
from emu.screen import Screen
from emu.suite import preparing


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "prepare",
        help="build what a run of the tests needs: kernels, guests, drivers, checkpoints",
        description="Build what pytest's tests need with these arguments, before they run: QEMU, "
        "kernels, guest images, drivers and checkpoints that the cache does not have.",
        epilog="exit status: 0 all is built; 3 something can't be; 125 the rig broke; 130 "
        "interrupted",
    )
    parser.add_argument(
        "--jobs", type=count, default=_processors(), metavar="N",
        help="checkpoints made at once (default: one for each processor, 4 at most)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print what is missing; build nothing")
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="for pytest, after a `--`: -- -m quick"
    )
    add_locked_option(parser)
    parser.set_defaults(command=_prepare)


def _processors() -> int:
    return min(4, len(os.sched_getaffinity(0)))


def _prepare(arguments: argparse.Namespace) -> int:
    cache = Cache()
    with Screen() as screen:
        with screen.stage("collecting the tests"):
            collected = preparing.collect(arguments.arguments, cache)
        os.environ.update(collected.environ)
        context = build_context(screen)
        steps = preparing.plan(collected.needs, context)
        for step in steps:
            screen.note(str(step))
        if steps:
            total = preparing.about(preparing.estimate(steps, arguments.jobs))
            screen.note(f"{len(steps)} things to build first: {total} on an idle machine")
        if not arguments.list:
            preparing.perform(steps, context, arguments.jobs)
    return EXIT_HELD
