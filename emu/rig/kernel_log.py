"""What a kernel has logged since a mark.

domu.log.mark()
domu.attach(lun)
assert domu.log.lines("connected: ring 16 pages")
"""

from __future__ import annotations

from collections.abc import Callable

from emu.channel.channel import Channel
from emu.errors import RigError
from emu.stack.stack import kernel_log


class KernelLog:
    """One guest's kernel log. `seen` lines of it, from the first on, are not shown.

    A domU that is restored or migrated keeps its log, and so its mark. A kernel's buffer holds
    some 2000 lines and loses the oldest: who logs more has to mark in between.
    """

    def __init__(self, channel: Callable[[], Channel], seen: int = 0) -> None:
        self._channel = channel
        self._seen = seen
        self._last: str | None = None

    def mark(self) -> None:
        """Show from now on only what is logged later."""
        logged = kernel_log(self._channel())
        self._seen, self._last = len(logged), logged[-1] if logged else None

    def lines(self, text: str = "") -> list[str]:
        """The lines with `text` in them that were logged since the mark.

        Raises RigError when the kernel has lost lines since then.
        """
        return [line for line in self._since(kernel_log(self._channel())) if text in line]

    def _since(self, logged: list[str]) -> list[str]:
        if self._last is None or logged[self._seen - 1 : self._seen] == [self._last]:
            return logged[self._seen :]
        # Older lines have been lost; a line has its time, so that it is there once.
        places = [place for place, line in enumerate(logged) if line == self._last]
        if not places:
            raise RigError(
                f"a kernel's log has lost lines since {self._last!r}",
                hint="it logs more than its buffer holds: mark it more often",
            )
        return logged[places[-1] + 1 :]
