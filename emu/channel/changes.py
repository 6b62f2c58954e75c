"""What threads wait for, and how they are woken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from emu.deadline import Deadline
from emu.reactor import reactor


class Guard(Protocol):
    """Ends waits: a machine's watch."""

    def check(self, deadline: Deadline | None = None) -> None:
        """Raise what should end a wait until `deadline`, if anything should."""

    def on_trouble(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called, on any thread, when `check` begins to raise; returns how to stop."""


class Changes:
    """The lock of some state, and a wait until a condition on that state holds.

    Whoever changes the state does so with the lock (`with changes:`) and calls `notify`.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def __enter__(self) -> None:
        self._condition.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._condition.__exit__(kind, error, trace)

    def notify(self) -> None:
        """Wake all waits, so that each looks at its state and asks its guard."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(
        self,
        ready: Callable[[], object],
        left: Callable[[], float | None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> bool:
        """Wait until `ready` holds; False when no seconds are `left` (None: no limit).

        `ready` is called with the lock. `check` is called without it, before the first sleep and
        after every `notify`; what it raises ends the wait. Never in the reactor's thread.
        """
        while True:
            with self._condition:
                if ready():
                    return True
                count = self._count
            check()
            with self._condition:
                if count != self._count:
                    continue
                if reactor().here():
                    raise RuntimeError("the reactor can't wait for what only it can bring")
                seconds = left()
                if seconds is not None and seconds <= 0:
                    return False
                self._condition.wait(seconds)
