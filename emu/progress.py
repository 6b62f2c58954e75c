"""Progress of work that takes long.

The floors below lab/ never print. They report to a `Progress`: commands pass one that draws,
tests this one, which is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """A silent progress; subclasses draw."""

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """A named piece of work, e.g. "building the lab kernel"; stages nest."""
        yield

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        """What the current stage is doing, and how far it is."""

    def note(self, line: str) -> None:
        """One line worth keeping on the screen (a fall-back, a rebuilt cache entry)."""


@contextmanager
def staged(
    manager: AbstractContextManager[T], progress: Progress, enter: str, leave: str
) -> Iterator[T]:
    """`manager`, with its beginning and its end, also after an error, as stages."""
    with ExitStack() as opened:
        with progress.stage(enter):
            value = opened.enter_context(manager)
        try:
            yield value
        except BaseException as error:
            with progress.stage(leave):
                if opened.__exit__(type(error), error, error.__traceback__):
                    return
            raise
        with progress.stage(leave):
            opened.close()
