"""How long work tells what it is doing.

The floors below lab/ never print. They take a `Progress` and tell it; cli.py hands
them one that draws, tests hand them this one, which keeps quiet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """A silent progress; subclasses draw."""

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """A named piece of work, e.g. "building the lab kernel"; stages nest."""
        yield

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        """A sign of life inside the current stage: what is being done, how far."""

    def note(self, line: str) -> None:
        """One line worth keeping on the screen (a fall-back, a rebuilt cache entry)."""
