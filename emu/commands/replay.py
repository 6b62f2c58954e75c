"""`emu replay`."""

from __future__ import annotations

import argparse
from pathlib import Path

from emu.commands.options import EPILOG, Commands
from emu.errors import EXIT_HELD, EXIT_NOT_HELD
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import replay
from emu.screen import Screen, fail
from emu.stack import recording


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "replay",
        help="replay a recorded run, instruction by instruction",
        description="Replay what `emu run --record` or `pytest --record` recorded: the same "
        "instructions, interrupts and console output. With --gdb a "
        "debugger can stop it anywhere: gdb vmlinux -ex 'target remote :PORT'.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="the recorded run's directory (default: the last)",
    )
    parser.add_argument(
        "--gdb",
        type=int,
        metavar="PORT",
        help="wait for a debugger on this port of 127.0.0.1, and continue when it does",
    )
    parser.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    with Screen() as screen:
        done = replay.replay(
            arguments.run or recording.newest(), BuildContext(Cache(), screen), arguments.gdb
        )
    print(f"replayed {done.instructions / 1e9:.1f} G instructions")
    for each in done.consoles:
        if each.differs:
            fail(f"{each.name} printed {each.differs[1]!r}, recorded was {each.differs[0]!r}")
        else:
            print(f"{each.name}: {each.replayed} lines, as recorded")
    print(f"logs of {done.run}")
    return EXIT_HELD if done.same else EXIT_NOT_HELD
