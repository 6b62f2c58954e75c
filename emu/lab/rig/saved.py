"""A stack's domU saved into dom0's memory and restored from there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from emu.errors import NotHeld
from emu.lab.stack import Stack
from emu.machine.deadline import Deadline
from emu.xen.domain import Domain
from emu.xen.ring import Ring

FILE = "/run/domu.save"
STOCK_MOVE = "kernel WARNING"
"""What the console driver of Linux 6.1 says when a guest with two consoles is restored: see
`emu.lab.rig.leftovers`."""
SAVED_WITHIN = 120.0
SUSPENDED_WITHIN = 60.0
RECONNECTED_WITHIN = 20.0
"""Seconds in which both ends of a disk have found each other after a restore."""
_SAVE = "xl save $1 $2 > /run/save.log 2>&1; echo $? > /run/save.status"
# A domain that is gone already will do as well as one that is suspended.
_SUSPENDED = """
until xl list $1 2>/dev/null | grep -q -- '---s' || [ -e /run/save.status ]; do usleep 50000; done
"""
_ENDED = """
until [ -e /run/save.status ]; do usleep 50000; done; cat /run/save.status /run/save.log
"""


@contextlib.contextmanager
def saving(stack: Stack) -> Iterator[None]:
    """Save the domU; the body runs when it stands still and its pages are being written.

    Raises NotHeld with xl's words when it could not be saved.
    """
    name, dom0 = stack.domain.name, stack.host.dom0
    stack.domain.close()
    dom0.run("rm -f /run/save.status", timeout=20)
    dom0.spawn(["sh", "-c", _SAVE, "sh", name, FILE])
    dom0.run(["sh", "-c", _SUSPENDED, "sh", name], timeout=SUSPENDED_WITHIN)
    yield
    status, *said = dom0.run(_ENDED, timeout=SAVED_WITHIN).text.splitlines()
    if status != "0":
        raise NotHeld(f"xl save of {name} ended with status {status}", lines=said[-8:])


def restore(stack: Stack) -> None:
    """Restore the domU: another domid, another directory in xenstore; waits for its agent."""
    name = stack.domain.name
    stack.host.xl("restore", FILE, timeout=120)
    stack.domain = stack.host.find(name)
    stack.resumes += 1
    stack.domain.open_channel(60)


def reconnected(domain: Domain, disk: str) -> Ring:
    """Wait until both ends of a disk are connected after a restore; the front end comes second.

    Raises NotHeld with both states when they do not get there.
    """
    deadline = Deadline(f"both ends of {disk}", RECONNECTED_WITHIN)
    while not (ring := domain.ring(disk)).connected:
        if deadline.passed:
            raise NotHeld(
                f"{disk} of domU {domain.name} did not connect within {deadline.spent:.0f} s "
                f"after it was restored: front end {ring.front_state}, back end "
                f"{ring.back_state}, {domain.reported(disk)}",
                lines=[
                    *domain.last_words(domain.channel),
                    *domain.last_words(domain.host.dom0),
                ],
            )
        time.sleep(0.05)
    return ring
