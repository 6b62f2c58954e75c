"""Errors a user can act on.

Every error that may reach a person derives from EmuError: one sentence that says
what was wanted and what was found, a hint (the command or change that mends it), and
the last lines seen where a guest or a tool printed any.
"""

from __future__ import annotations

from collections.abc import Iterable

EXIT_HELD = 0
"""Everything that was to hold held."""
EXIT_NOT_HELD = 1
"""The stack ran and something did not hold: a bisection's "bad"."""
EXIT_USAGE = 2
"""The command line made no sense."""
EXIT_INPUT = 3
"""An input was refused: a patch, a module, a file, a kernel."""
EXIT_RIG = 125
"""The rig broke before an answer was found: what `git bisect run` skips."""
EXIT_INTERRUPTED = 130


class EmuError(Exception):
    """Base of all errors meant for a person.

    `hint` is what to do about it; `lines` are the last lines seen.
    """

    exit_code = EXIT_RIG

    def __init__(self, message: str, *, hint: str | None = None, lines: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.lines = tuple(lines)

    def __str__(self) -> str:
        parts = [self.message]
        parts += [f"    {line}" for line in self.lines]
        if self.hint:
            parts.append(f"  {self.hint}")
        return "\n".join(parts)


class InputError(EmuError):
    """Something the user gave, or the host lacks, was refused before any guest ran."""

    exit_code = EXIT_INPUT


class RigError(EmuError):
    """The rig (QEMU, a guest's set-up, the channel, the cache) failed."""


class GuestError(RigError):
    """A guest that ran hangs, is gone, or says what it should not.

    To a command that starts it, that is a broken rig. To a test, whose drivers run in it, that is
    what the test is about: they may have broken it.
    """


class NotHeld(EmuError):
    """The stack ran, and what should have been true was not."""

    exit_code = EXIT_NOT_HELD
