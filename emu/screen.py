"""Progress on standard error: what runs, for how long, how far.

On a terminal one live line; elsewhere (CI, a pipe) a line when a stage begins and ends, and
every few seconds a line that names what is awaited.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.status import Status

from emu.progress import Progress

SIGN_OF_LIFE = 5.0
"""Seconds without a line after which one is printed where there is no live line."""
QUIET_SIGN_OF_LIFE = 30.0
"""The same on a quiet screen, which prints nothing else."""
_JOIN = 2.0


class Screen(Progress):
    """Draws progress; use it as a context manager, so that the live line ends with it.

    A quiet one prints only what is awaited, once that has taken long.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._live = self.console.is_terminal and not quiet
        self._stages: list[tuple[str, float]] = []
        self._status: Status | None = None
        self._patience = QUIET_SIGN_OF_LIFE if quiet else SIGN_OF_LIFE
        self._began = self._printed = time.monotonic()
        self._tick = ""
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._keep_alive, name="screen", daemon=True)

    def __enter__(self) -> Screen:
        if self._live:
            self._status = self.console.status("")
            self._status.start()
        self._clock.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._status is not None:
            self._status.stop()
            self._status = None
        self._clock.join(_JOIN)  # it may be blocked: nobody reads standard error

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Show `what` while it runs, and how long it took when that was worth a line."""
        began = time.monotonic()
        self._stages.append((what, began))
        self._tick = ""
        if not self._live:
            self.note(f"{'  ' * (len(self._stages) - 1)}{what} …")
        self._draw()
        try:
            yield
        finally:
            self._stages.pop()
            self._tick = ""
        took = time.monotonic() - began
        if took >= 1.0 or not self._stages:
            self.note(f"{'  ' * len(self._stages)}{what}: {took:.1f} s")
        self._draw()

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        """Show where the current stage is."""
        self._tick = what
        if done is not None and total:
            self._tick += f" {100 * done / total:.0f} %"
        self._draw()

    def note(self, line: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            self._line(line)

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False)
        self._printed = time.monotonic()

    def _draw(self) -> None:
        if self._status is None or not self._stages:
            return
        what, began = self._stages[-1]
        text = f"{what} ({time.monotonic() - began:.0f} s)"
        self._status.update(f"{text}: {self._tick}" if self._tick else text)

    def _keep_alive(self) -> None:
        while not self._over.wait(1.0):
            if self._live:
                self._draw()
            elif time.monotonic() - self._printed > self._patience:
                self._line(self._awaited())

    def _awaited(self) -> str:
        stages = self._stages[-1:]  # the other thread may end the last stage meanwhile
        if not stages:
            return f"  … still at work ({time.monotonic() - self._began:.0f} s)"
        ((what, began),) = stages
        tick = f": {self._tick}" if self._tick else ""
        return f"  … {what}{tick} ({time.monotonic() - began:.0f} s)"


def fail(text: str) -> None:
    """Print an error to standard error."""
    print(f"emu: {text}", file=sys.stderr)
