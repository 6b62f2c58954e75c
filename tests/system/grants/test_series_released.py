"""The series: what is made for a connection is given back, when it can be and when it is idle."""

from __future__ import annotations

import pytest
from driver_checks import check_data, check_holds, check_pages, check_queues, only, shown

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.disks import GONE_WITHIN
from emu.xen.queues import FRONT_ROOT

IDLE_WITHIN = 15.0
"""Seconds in which an idle back end has let its free pages go: five, on a busy machine."""
LAST = "xvdc"


def deferred(domu: RigDomu) -> int:
    """Pages that the front end's module gave up while they were mapped, of all disks."""
    return int(domu.run(f"cat {FRONT_ROOT}/deferred_frees"))


def test_pages_still_mapped_are_counted(host: RigHost, lun: RigLun) -> None:
    """A front end that is unbound takes its pages back before dom0 unmaps them."""
    domu = host.create(disk=lun, ring_pages=4)
    domu.fill(lun)
    front, back = shown(domu, disk=lun)
    persistent = back.persistent
    assert persistent, "dom0 keeps no page of data mapped: there is nothing to give up"
    counts = (deferred(domu), front.deferred)
    assert counts == (0, 0), (
        f"before anything was given up the module counts {counts[0]} pages, the disk {counts[1]}"
    )
    domu.unbind_front(lun)
    now = deferred(domu)
    assert now == 4 + persistent, (
        f"dom0 had 4 pages of the ring and {persistent} of data mapped when the front end went: "
        f"{now} were kept until it lets go, the others given up while mapped"
    )
    domu.detach(lun)
    domu.attach(lun)
    front, _ = shown(domu, disk=lun)
    counts = (deferred(domu), front.deferred)
    assert counts == (4 + persistent, 0), (
        f"after {4 + persistent} pages of an earlier connection were given up the module counts "
        f"{counts[0]}, and the new disk, which gave up none, {counts[1]}"
    )


def test_detach_defers_nothing(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)
    domu.fill(lun)
    domu.detach(lun)
    shown = f"{FRONT_ROOT}/{domu.device('front')}"
    domu.channel.wait_until("[ ! -e $1 ]", f"{shown} to be gone", GONE_WITHIN, shown)
    given_up = deferred(domu)
    assert not given_up, f"a disk that was detached in order gave up {given_up} pages while mapped"


def free_pages(domu: RigDomu) -> int:
    _, back = shown(domu)
    assert back.free_pages is not None, "the back end does not show its free pages"
    return back.free_pages


def test_idle_ring_keeps_no_free_pages(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=1, back_parameters={"feature_persistent": 0})
    domu.fill(lun)
    free = free_pages(domu)
    assert 0 < free <= 352, (
        f"the back end keeps {free} free pages for 32 requests of 11 pages, after data was written"
    )
    until = Deadline("the free pages to go", IDLE_WITHIN)
    now = poll(lambda: free_pages(domu), until, until=lambda pages: not pages, pause=0.5)
    assert now == 0, f"a ring that has been idle for {IDLE_WITHIN:.0f} s keeps {now} free pages"
    check_data(domu, lun)


@pytest.mark.stack(kernel="lab", domu_vcpus=8, grant_frames=2)
def test_no_grants_are_left_for_a_ring(host: RigHost, lun: RigLun) -> None:
    """1024 grants in all: one ring of the last disk can't be made. The other disks, the console
    and what comes after do not notice. (Linux 6.1 does not boot with 512.)
    """
    domu = host.create(
        disk=lun,
        ring_pages=64,
        front_parameters={"max_queues": 8},
        back_parameters={"max_queues": 2, "feature_persistent": 0},
    )
    check_queues(domu.ring(), 2)
    written = domu.fill()
    host.set_back(max_queues=8)
    check_queues(domu.attach(lun, "xvdb"), 8)
    domu.log.mark()
    domu.domain.attach(lun.lun, LAST)
    domu.wait_front("Closed", disk=LAST)
    error = only(domu.errors("front", LAST), "tell of a ring that could not be granted")
    assert "granting access to 64 ring pages" in error, f"the front end reports {error!r}"
    check_holds(domu, written)
    check_holds(domu, written, "xvdb")
    domu.detach(LAST)
    domu.wait_gone(LAST)
    host.set_back(max_queues=1)
    check_pages(domu.attach(lun, LAST), 64)
    check_data(domu)
