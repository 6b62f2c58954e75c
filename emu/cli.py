"""The `emu` command: parse, call a command of commands/, turn errors into exit statuses."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from emu.commands.parser import parser
from emu.errors import EXIT_INTERRUPTED, EXIT_NOT_HELD, EmuError
from emu.images import replaced
from emu.screen import fail


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words).parse_args(words)
    # SIGTERM and a closed terminal unwind like Ctrl-C: nothing may be left running or half
    # written. (nohup has SIGHUP ignored; so it stays.)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        if getattr(arguments, "locked", False):
            os.environ[replaced.INSIST] = "1"
        # A locked package that the archive has replaced changes all that is made of it.
        status: int = replaced.settled(arguments.command)(arguments)
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


if __name__ == "__main__":
    sys.exit(main())
