"""The `emu` command: parse, call a command of commands/, turn errors into exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from emu import __version__
from emu.commands import (
    bench,
    cache,
    doctor,
    images,
    mutants,
    qemu,
    repeat,
    replay,
    run,
    series,
    shell,
)
from emu.commands.options import EPILOG
from emu.errors import EXIT_INTERRUPTED, EXIT_NOT_HELD, EmuError
from emu.screen import fail

COMMANDS = (run, shell, replay, series, mutants, repeat, doctor, images, qemu, cache, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = _parser().parse_args(argv)
    # Plain SIGTERM and a closed terminal should unwind like Ctrl-C: nothing may be left
    # running or half written. (nohup has SIGHUP ignored, and means it.)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        status: int = arguments.command(arguments)
    except EmuError as error:
        fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            fail("interrupted; nothing is left running")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Nobody reads our output any more; the interpreter's last flush shall not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NOT_HELD
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu",
        description="The Xen block stack in QEMU: Xen, dom0, a tcmu-runner LUN, a domU, "
        "our drivers.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"emu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
