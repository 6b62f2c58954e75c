"""The one event loop of the process, in a thread of its own.

QMP, the command channels, the consoles and the end of every QEMU are handled here; other
threads call in and wait.
The thread lives as long as the process: Linux sends the death signal that a child asked
for when the *thread* that forked it ends, so QEMU must be forked from this one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from emu.errors import RigError

T = TypeVar("T")


class Reactor:
    """An asyncio event loop in a daemon thread, with calls for threads that block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._main, name="emu-reactor", daemon=True)
        self.thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def here(self) -> bool:
        """Whether the caller runs in the reactor's own thread (and so must not wait)."""
        return threading.current_thread() is self.thread

    def submit(self, coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `coro` in the reactor."""
        return asyncio.run_coroutine_threadsafe(coro, self.loop)

    def run(self, coro: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
        """Run `coro` in the reactor and wait for its result, `timeout` seconds at most.

        Raises RigError, saying what was awaited, when it takes longer.
        """
        if self.here():
            coro.close()
            raise RuntimeError(f"the reactor can't wait for itself ({what})")
        future = self.submit(coro)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise RigError(f"waited {timeout:.0f} s for {what}") from None
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], T], timeout: float = 30.0, what: str = "a call") -> T:
        """Call a function that does not block in the reactor's thread; its result."""
        if self.here():
            return function()

        async def caller() -> T:
            return function()

        return self.run(caller(), timeout, what)

    def soon(self, function: Callable[[], object]) -> None:
        """Have `function` called in the reactor's thread, without waiting for it."""
        self.loop.call_soon_threadsafe(function)


_lock = threading.Lock()
_reactor: Reactor | None = None


def reactor() -> Reactor:
    """The reactor of this process, started at its first use."""
    global _reactor
    with _lock:
        if _reactor is None:
            _reactor = Reactor()
        return _reactor


def _forget() -> None:
    global _reactor, _lock
    _reactor = None
    _lock = threading.Lock()


# A forked child has no copy of the thread.
os.register_at_fork(after_in_child=_forget)
