"""A domU that moves: saved and restored under dom0, with its requests held half-way."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import programs
from ends import DISK, Ends

from emu.deadline import Deadline
from emu.images import modules
from emu.images.context import BuildContext
from emu.rig import RigHost, RigLun
from emu.xen import save_restore
from emu.xen.config import virtual_device
from emu.xen.domain import Domain
from emu.xen.ring import Ring

BACK_ENDS = Path(__file__).parent / "back-ends"
HELD_WITHIN = 30.0
"""Seconds in which all requests of a test have reached the ring, or wait for it."""


def back_end(host: RigHost, name: str) -> str:
    """The module of a back end of `back-ends/`: `patched` with one patch more."""
    kernel = host.stack.artifacts.kernel
    patches = [*modules.patches_of(kernel), BACK_ENDS / f"{name}.patch"]
    made = modules.build_drivers(kernel, patches, BuildContext(host.cache))
    return str(made / "xen-blkback.ko")


def blocks(ends: Ends) -> None:
    """Put the program of `guest/blocks.c` into the domU."""
    programs.put("blocks", ends.channel("front"), ends.cache)


def outstanding(domain: Domain) -> int:
    """Requests of the front end that the back end has not answered, on all rings of the disk."""
    views = domain.queues(DISK)
    assert views.front, "the front end shows no queue"
    numbers = [queue.outstanding for queue in views.front]
    assert None not in numbers
    return sum(number or 0 for number in numbers)


def wait_outstanding(domain: Domain, number: int) -> None:
    """Wait until so many requests are on the ring."""
    until = Deadline("requests on the ring", HELD_WITHIN)
    while (now := outstanding(domain)) != number:
        assert not until.passed, f"{now} requests are on the ring, not {number}"
        time.sleep(0.1)


def held(ends: Ends) -> contextlib.AbstractContextManager[None]:
    """The LUN holds all that comes to it."""
    return RigLun(ends.stack.lun, ends.stack.host.dom0).held()


def save(ends: Ends) -> None:
    """Save the domU into dom0's memory; returns when it is gone."""
    save_restore.save(ends.stack.domain)


def saving(ends: Ends) -> contextlib.AbstractContextManager[None]:
    """Save the domU; the body runs when it stands still and its pages are being written."""
    return save_restore.saving(ends.stack.domain)


def restore(ends: Ends) -> None:
    """Restore the domU: another domid, another directory; returns when it answers."""
    save_restore.restore(ends.stack.host, ends.stack.domain.name)


def reconnected(ends: Ends) -> Ring:
    """Wait until both ends are connected after a restore; the front end comes second."""
    return save_restore.reconnected(ends.stack.domain, DISK)


def served(ends: Ends, what: str) -> int:
    """What the back end of the disk counted since it connected: wr_req, rd_req, f_req."""
    name = f"vbd-{ends.stack.domain.domid}-{virtual_device(DISK)}"
    path = f"/sys/bus/xen-backend/devices/{name}/statistics/{what}"
    return int(ends.channel("back").run(["cat", path], timeout=20).text)
