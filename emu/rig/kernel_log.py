"""What a kernel has logged since a mark.

domu.log.mark()
domu.attach(lun)
assert domu.log.lines("connected: ring 16 pages")
"""

from __future__ import annotations

from collections.abc import Callable

from emu.channel.channel import Channel
from emu.stack.stack import kernel_log


class KernelLog:
    """One guest's kernel log. `seen` lines of it, from the first on, are not shown.

    A domU that is restored or migrated keeps its log, and so its mark. The log must not lose
    lines in between, as to `dmesg -c`.
    """

    def __init__(self, channel: Callable[[], Channel], seen: int = 0) -> None:
        self._channel = channel
        self._seen = seen

    def mark(self) -> None:
        """Show from now on only what is logged later."""
        self._seen = len(kernel_log(self._channel()))

    def lines(self, text: str = "") -> list[str]:
        """The lines with `text` in them that were logged since the mark."""
        return [line for line in kernel_log(self._channel())[self._seen :] if text in line]
