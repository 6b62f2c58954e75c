"""The fixtures without their prefix: `host`, `lun`, `domu`, `ledger`, `two_hosts`, `stack`.

One line in a conftest.py, for the tests in its folder, whatever other plugins call a `host`:

    from emu.pytestplugin.short_names import *
"""

from __future__ import annotations

import pytest

from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.stack.stack import Stack

__all__ = ["domu", "host", "ledger", "lun", "stack", "two_hosts"]


@pytest.fixture
def stack(emu_stack: Stack) -> Stack:
    """`emu_stack`: a running stack from its checkpoint."""
    return emu_stack


@pytest.fixture
def host(emu_host: RigHost) -> RigHost:
    """`emu_host`: Xen and dom0 with a LUN and an idle domU."""
    return emu_host


@pytest.fixture
def two_hosts(emu_two_hosts: tuple[RigHost, RigHost]) -> tuple[RigHost, RigHost]:
    """`emu_two_hosts`: two hosts that share the LUN, joined by a network."""
    return emu_two_hosts


@pytest.fixture
def lun(emu_lun: RigLun) -> RigLun:
    """`emu_lun`: the LUN and its server."""
    return emu_lun


@pytest.fixture
def domu(emu_domu: RigDomu) -> RigDomu:
    """`emu_domu`: the domU with the patched drivers at both ends, and no disk yet."""
    return emu_domu


@pytest.fixture
def ledger(emu_ledger: Ledger) -> Ledger:
    """`emu_ledger`: what was granted, mapped and held, before and after."""
    return emu_ledger
