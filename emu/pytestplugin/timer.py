"""pytest-timeout's timer stands still while the rig builds: a kernel takes longer than a test may.

Both hooks are pytest-timeout's own (its README, "Extending pytest-timeout"); without it nothing
calls them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_timed = pytest.StashKey[tuple[pytest.Item, object]]()
"""The test whose time runs, and pytest-timeout's settings for it."""


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    # Nothing is returned: pytest-timeout sets the timer.
    item.config.stash[_timed] = item, settings


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    if _timed in item.config.stash:
        del item.config.stash[_timed]


@contextmanager
def untimed(config: pytest.Config) -> Iterator[None]:
    """Stop the timer of the test that runs, if any; afterwards it has all its time again."""
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
