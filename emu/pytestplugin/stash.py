"""What the fixtures leave with a test for the hooks: the stacks it runs on."""

from __future__ import annotations

from typing import Any

import pytest

from emu.rig import RigHost
from emu.stack.stack import Stack

STACK = pytest.StashKey[Stack]()
"""The stack of `emu_stack`; of two hosts, the first one's."""
SECOND = pytest.StashKey[Stack]()
"""The stack of the second of two hosts."""
HOST = pytest.StashKey[RigHost]()
"""The host of STACK."""


def forget(stash: pytest.Stash) -> None:
    """Take all of these out of a test's stash: its stacks have ended."""
    keys: tuple[pytest.StashKey[Any], ...] = (STACK, SECOND, HOST)
    for key in keys:
        if key in stash:
            del stash[key]
