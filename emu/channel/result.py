"""The result of a command in a guest, how it ended, and the errors."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from emu.errors import EmuError, GuestError

Arg = str | bytes

LAST_LINES = 15
PAUSE = "read -t 0.02 x <> /run/pause || true"
"""Shell: sleep 20 ms. It reads a pipe that nobody writes to, made by the guest's init, because
`usleep` makes the shell fork, which takes 13 ms of an emulated CPU (measured)."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, or the signal that ended it.

    A command that could not be started has status 127, as in a shell, and a `reason`.
    """

    status: int | None
    signal: int | None
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"could not be started: {self.reason}"
        if self.signal is not None:
            try:
                return f"was ended by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"was ended by signal {self.signal}"
        return f"ended with status {self.status}"


@dataclass(frozen=True)
class CommandResult:
    """A command that ended; `seconds` on this machine's clock, output as it was written."""

    argv: tuple[Arg, ...]
    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are no UTF-8 show as U+FFFD."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        return self.status == 0


class ChannelLost(GuestError):
    """The stream to the guest ended or was damaged: no answer can come any more."""


class CommandTimeout(GuestError):
    """A command did not end in time; it was killed."""


class CommandFailed(EmuError):
    """A command ended with another status than 0, or could not be started."""

    def __init__(self, where: str, result: CommandResult, ended: Ended) -> None:
        output = result.stderr if result.stderr.strip() else result.stdout
        super().__init__(f"{where}: {shown(result.argv)} {ended}", lines=last_lines(output))
        self.result = result
        self.command = result.argv
        self.status = result.status


def shown(argv: Sequence[Arg], limit: int = 120) -> str:
    """A command as one would type it, between backquotes, cut to `limit` characters.

    Of a script for /bin/sh, its text and its arguments.
    """
    words = [a.decode("utf-8", "backslashreplace") if isinstance(a, bytes) else a for a in argv]
    if words[:2] == ["/bin/sh", "-c"] and len(words) >= 3:
        line = " ".join([*words[2].split(), *words[4:]])
    else:
        line = shlex.join(words)
    return f"`{line if len(line) <= limit else line[: limit - 1] + '…'}`"


def last_lines(output: bytes, count: int = LAST_LINES) -> list[str]:
    """The last lines of what a command printed, as text."""
    return output[-16384:].decode("utf-8", "replace").rstrip().splitlines()[-count:]
