"""The `emu` command: parse, call one function of lab/, print."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from emu import __version__
from emu.errors import EXIT_HELD, EXIT_INTERRUPTED, EXIT_NOT_HELD, EmuError
from emu.images.cache import Cache
from emu.lab import report as reports
from emu.lab import run as runs
from emu.lab.stack import LARGE_RING, Wish, memory_for
from emu.screen import Screen, fail
from emu.xen.domain import KINDS, DomuConfig

EPILOG = """exit status: 0 all held; 1 the stack ran and something did not hold; 2 wrong usage;
3 an input was refused; 125 the rig broke; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = _parser().parse_args(argv)
    # A plain SIGTERM should unwind like Ctrl-C: nothing may be left running or half written.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status: int = arguments.command(arguments)
    except EmuError as error:
        fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        fail("interrupted; nothing is left running")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_NOT_HELD
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu",
        description="The Xen block stack in QEMU: Xen, dom0, a tcmu-runner LUN, a domU, our drivers.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"emu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    return parser


def add_stack_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which stack to start."""
    parser.add_argument(
        "--kernel",
        default="debian",
        metavar="NAME",
        help="debian (default), lab, or a full name of guest-images/kernels.toml",
    )
    parser.add_argument("--domu", choices=KINDS, default="pv", help="kind of domU (default pv)")
    parser.add_argument(
        "--domu-memory",
        type=int,
        metavar="MIB",
        help=f"default {memory_for(1)}, and {memory_for(64)} for rings beyond {LARGE_RING} pages",
    )
    parser.add_argument(
        "--accel",
        choices=("auto", "tcg", "kvm"),
        default="auto",
        help="auto (default) takes KVM only where Xen was seen to start under it",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "icount"),
        default="wall",
        help="icount: guest time counts instructions, whatever the machine's speed",
    )
    parser.add_argument("--qemu", default="qemu-system-x86_64", metavar="PATH", help="QEMU to run")
    parser.add_argument("--cold", action="store_true", help="boot, without a checkpoint")


def wish_of(arguments: argparse.Namespace, ring_pages: int = 1) -> Wish:
    """The stack that the options ask for."""
    memory = arguments.domu_memory or memory_for(ring_pages)
    return Wish(
        kernel=arguments.kernel,
        domu=DomuConfig(kind=arguments.domu, memory=memory),
        accel=arguments.accel,
        clock=arguments.clock,
        qemu=arguments.qemu,
        cold=arguments.cold,
    )


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="attach a disk over the drivers, show ring and grants, move data",
        description="Start the stack, load the drivers, attach the LUN, write and read back, "
        "detach, and say what held.",
        epilog=EPILOG,
    )
    parser.add_argument("--ring-pages", type=int, default=16, metavar="N", help="default 16")
    for end in ("front", "back"):
        parser.add_argument(
            f"--{end}",
            default="patched",
            metavar="DRIVER",
            help="patched (default), stock, or the path of a .ko",
        )
    parser.add_argument("--data", type=int, default=64, metavar="MIB", help="default 64")
    add_stack_options(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    wish = reports.RunWish(
        stack=wish_of(arguments, arguments.ring_pages),
        ring_pages=arguments.ring_pages,
        front=arguments.front,
        back=arguments.back,
        data_mib=arguments.data,
    )
    with Screen() as screen:
        report = runs.perform(wish, Cache(), screen)
    if arguments.json:
        print(json.dumps(reports.as_json(report), indent=2))
    else:
        print("\n".join(reports.lines(report)))
    for check in report.checks:
        if not check.held:
            fail(f"did not hold: {check.name} ({check.seen})")
    return EXIT_HELD if report.held else EXIT_NOT_HELD


if __name__ == "__main__":
    sys.exit(main())
