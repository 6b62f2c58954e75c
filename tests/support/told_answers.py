"""A back end that answers what a test tells it to: back-ends/told-answers.patch.

told = ToldBackEnd(host)                     # loaded, before any disk is attached
told.answer("xvda", "answer = = 5")          # what its next request is answered with
told.answer("xvda", "keep", operation=3)     # … or its next flush; given later
told.give("first")
"""

from __future__ import annotations

import itertools
from typing import Literal

from back_ends import back_end

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost
from emu.xen.vdev import virtual_device

TOLD_WITHIN = 10.0
ENDED_WITHIN = 10.0
"""Seconds in which a request is answered, or fails."""


class ToldBackEnd:
    """The back end of a host, and what it is told."""

    def __init__(self, host: RigHost, **parameters: str | int) -> None:
        self.host = host
        host.load_back(back_end(host, "told-answers"), **parameters)

    def answer(self, disk: str, what: str, operation: int = -1) -> None:
        """Replace the next answer to `operation` (-1: to any) of a disk; see the patch."""
        self.host.set_back(answer_disk=virtual_device(disk), answer_op=operation, answers=what)

    def wait(self) -> bool:
        """Wait until it has answered as it was told; whether it has."""
        until = Deadline("the back end's answer", TOLD_WITHIN)
        return poll(lambda: not self.host.back_parameter("answers"), until, pause=0.02)

    def give(self, order: Literal["first", "last", "none"]) -> None:
        """Give the answers that were kept, the first or the last first, or forget them."""
        self.host.set_back(give=order)


class Command:
    """A command of the domU in the background, which may sleep for ever."""

    _numbers = itertools.count(1)

    def __init__(self, domu: RigDomu, script: str) -> None:
        self.domu = domu
        self._file = f"/tmp/command.{next(self._numbers)}"
        domu.run(f"({script}; echo $? > {self._file}) > /dev/null 2>&1 &")

    def status(self) -> int | None:
        """How it ended; None: it has not."""
        text = self.domu.run(f"cat {self._file} 2>/dev/null || true").strip()
        return int(text) if text else None

    def wait(self) -> int | None:
        """Wait until it has ended; how, or None."""
        return poll(
            self.status,
            Deadline("a command to end", ENDED_WITHIN),
            until=lambda status: status is not None,
            pause=0.05,
        )
