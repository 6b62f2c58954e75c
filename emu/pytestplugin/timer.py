"""Stop pytest-timeout's timer while the rig builds: a kernel takes longer than a test may.

Both hooks are pytest-timeout's (its README, "Extending pytest-timeout"); without it they are
not called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_timed = pytest.StashKey[tuple[pytest.Item, object]]()
"""The test whose timer runs, and pytest-timeout's settings for it."""


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    # Returns nothing: pytest-timeout sets the timer.
    item.config.stash[_timed] = item, settings


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    if _timed in item.config.stash:
        del item.config.stash[_timed]


@contextmanager
def untimed(config: pytest.Config) -> Iterator[None]:
    """Stop the timer of the running test, if any; afterwards it starts again in full."""
    timed = config.stash.get(_timed, None)
    if timed is None:
        yield
        return
    item, settings = timed
    config.hook.pytest_timeout_cancel_timer(item=item)
    try:
        yield
    finally:
        config.hook.pytest_timeout_set_timer(item=item, settings=settings)
