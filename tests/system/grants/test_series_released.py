"""The series: what is made for a connection is given back, when it can be and when it is idle."""

from __future__ import annotations

import time

import pytest
from ends import DISK, Ends

from emu.xen.config import virtual_device
from emu.xen.queues import FRONT_ROOT

PARAMETERS = "/sys/module/xen_blkback/parameters"
IDLE_WITHIN = 15.0
"""Seconds in which an idle back end has let its free pages go: five, on a busy machine."""
LAST = "xvdc"


def deferred(ends: Ends) -> int:
    """Pages that the front end's module gave up while they were mapped, of all disks."""
    return int(ends.channel("front").run(["cat", f"{FRONT_ROOT}/deferred_frees"], timeout=20).text)


def test_pages_still_mapped_are_counted(ends: Ends) -> None:
    """Who unbinds the front end takes its pages back before dom0 unmaps them."""
    ends.load("back")
    ends.connect(order=2)
    ends.fill_disk()
    views = ends.stack.domain.queues(DISK)
    assert views.front
    assert views.back
    persistent = views.back[0].persistent
    assert persistent
    assert (deferred(ends), views.front[0].deferred) == (0, 0)
    ends.unbind_front()
    now = deferred(ends)
    assert now == 4 + persistent, (
        f"dom0 had 4 pages of the ring and {persistent} of data mapped when the front end went: "
        f"{now} were kept until it lets go, the others given up while mapped"
    )
    ends.stack.domain.detach(DISK)
    ends.attach()
    ends.stack.domain.wait_connected(DISK)
    views = ends.stack.domain.queues(DISK)
    assert views.front
    assert (deferred(ends), views.front[0].deferred) == (4 + persistent, 0)


def test_nothing_is_deferred_by_a_detach(ends: Ends) -> None:
    ends.load("back")
    ends.connect(order=2)
    ends.fill_disk()
    ends.stack.domain.detach(DISK)
    name = f"vbd-{virtual_device(DISK)}"
    gone = f"until [ ! -e {FRONT_ROOT}/{name} ]; do usleep 50000; done"
    ends.channel("front").run(gone, timeout=20)
    assert deferred(ends) == 0


def free_pages(ends: Ends) -> int:
    views = ends.stack.domain.queues(DISK)
    assert views.back
    assert views.back[0].free_pages is not None
    return views.back[0].free_pages


def test_an_idle_ring_keeps_no_free_pages(ends: Ends) -> None:
    ends.load("back", feature_persistent=0)
    ends.connect(order=0)
    ends.fill_disk()
    assert 0 < free_pages(ends) <= 352
    until = time.monotonic() + IDLE_WITHIN
    while (now := free_pages(ends)) and time.monotonic() < until:
        time.sleep(0.5)
    assert now == 0, f"a ring that has been idle for {IDLE_WITHIN:.0f} s keeps {now} free pages"
    assert ends.fill_disk() == ends.sum_of_disk()


@pytest.mark.stack(kernel="lab", domu_vcpus=8, grant_frames=2)
def test_no_grants_left_for_a_ring(ends: Ends) -> None:
    """1024 grants in all: the sixth ring of the last disk can't be made. The other disks, the
    console and what comes after do not notice. (Linux 6.1 does not boot with 512.)
    """
    ends.load("back", max_queues=2, feature_persistent=0)
    ends.load("front", max_queues=8, max_ring_pages=64)
    ends.attach()
    assert len(ends.stack.domain.wait_connected(DISK).queues) == 2
    written = ends.fill_disk()
    allow_queues(ends, 8)
    ends.stack.domain.attach(ends.stack.lun, "xvdb")
    assert len(ends.stack.domain.wait_connected("xvdb").queues) == 8
    ends.listen()
    ends.stack.domain.attach(ends.stack.lun, LAST)
    until = time.monotonic() + 20
    while (state := ends.stack.domain.front_tree(LAST).state()) != "Closed":
        assert time.monotonic() < until, f"the front end stands at {state}"
        time.sleep(0.1)
    told = ends.said("front", f"vbd vbd-{virtual_device(LAST)}: ")
    assert len(told) == 1, told
    assert "granting access to 64 ring pages" in told[0]
    assert ends.sum_of_disk() == written
    ends.stack.domain.detach(LAST)
    # A device that comes back before the domU has seen it go is taken for the old one.
    device = f"/sys/bus/xen/devices/vbd-{virtual_device(LAST)}"
    ends.channel("front").run(f"until [ ! -e {device} ]; do usleep 50000; done", timeout=20)
    allow_queues(ends, 1)
    ends.stack.domain.attach(ends.stack.lun, LAST)
    assert ends.stack.domain.wait_connected(LAST).pages == 64
    assert ends.fill_disk() == ends.sum_of_disk()


def allow_queues(ends: Ends, queues: int) -> None:
    ends.channel("back").run(f"echo {queues} > {PARAMETERS}/max_queues", timeout=20)
