"""The `emu` command: parse, call a command of commands/, turn errors into exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from emu import __version__
from emu.commands.options import EPILOG
from emu.errors import EXIT_INTERRUPTED, EXIT_NOT_HELD, EmuError
from emu.screen import fail

COMMANDS = (
    "run",
    "shell",
    "replay",
    "runs",
    "series",
    "mutants",
    "repeat",
    "doctor",
    "images",
    "qemu",
    "cache",
    "bench",
)
"""Modules of commands/, in the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser(words).parse_args(words)
    # Plain SIGTERM and a closed terminal should unwind like Ctrl-C: nothing may be left
    # running or half written. (nohup has SIGHUP ignored, and means it.)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        status: int = arguments.command(arguments)
        sys.stdout.flush()  # the report is out, whatever Python's exit has to wait for
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


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """What parses `words`. All commands take 0.1 s to import: only the one that is named is."""
    parser = argparse.ArgumentParser(
        prog="emu",
        description="The Xen block stack in QEMU: Xen, dom0, a tcmu-runner LUN, a domU, "
        "our drivers.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"emu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"emu.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
