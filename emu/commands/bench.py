"""`emu bench`."""

from __future__ import annotations

import argparse
import json

from emu.commands.options import Commands, add_locked_option, add_qemu_option, build_context, count
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.lab import bench
from emu.screen import Screen
from emu.stack.wish import Wish


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "bench",
        help="measure the rig against its targets",
        description="Measure start, cold boot, disk and memory, and compare with the targets.",
        epilog="exit status: 0 every target that was measured is met; 1 one is missed",
    )
    parser.add_argument(
        "--repeat",
        type=count,
        default=bench.REPEATS,
        metavar="N",
        help=f"starts from the checkpoint (default {bench.REPEATS})",
    )
    parser.add_argument(
        "--cold-repeat",
        type=count,
        default=bench.COLD_REPEATS,
        metavar="N",
        help=f"cold boots of each kernel (default {bench.COLD_REPEATS})",
    )
    parser.add_argument("--lab", action="store_true", help="build the lab kernel if need be")
    parser.add_argument(
        "--fresh", action="store_true", help="time a first run with an empty cache as well"
    )
    parser.add_argument(
        "--tree", metavar="DIR", help="time a changed driver of this kernel tree as well"
    )
    parser.add_argument("--accel", choices=("auto", "tcg", "kvm"), default="auto")
    add_qemu_option(parser)
    add_locked_option(parser)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    wish = bench.BenchWish(
        stack=Wish(accel=arguments.accel, qemu=arguments.qemu),
        repeats=max(1, arguments.repeat),
        cold_repeats=max(1, arguments.cold_repeat),
        lab=arguments.lab,
        fresh=arguments.fresh,
        tree=arguments.tree,
    )
    with Screen() as screen:
        report = bench.perform(wish, build_context(screen))
    if arguments.json:
        print(json.dumps(bench.as_json(report), indent=2))
    else:
        print("\n".join(bench.lines(report)))
    return EXIT_HELD if report.held else EXIT_NOT_HELD
