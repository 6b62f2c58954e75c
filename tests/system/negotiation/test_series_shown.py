"""The series: both drivers show their queues, and the two accounts agree."""

from __future__ import annotations

import time

import pytest
from ends import DISK, SETTLES_WITHIN, Ends

from emu.rig import RigLun
from emu.xen.queues import BackQueue, FrontQueue


def shown(ends: Ends, queue: int = 0) -> tuple[FrontQueue, BackQueue]:
    """What the two ends show of one queue."""
    views = ends.stack.domain.queues(DISK)
    assert views.front, "the front end shows no queue"
    assert views.back, "the back end shows no queue"
    return views.front[queue], views.back[queue]


@pytest.mark.parametrize("order", [0, 4])
def test_ends_agree(ends: Ends, order: int) -> None:
    ends.load("back")
    ring = ends.connect(order)
    ends.fill_disk()
    wrong = list(ring.disagreements())
    assert not wrong, f"an end shows another ring than was negotiated: {wrong}"
    front, back = shown(ends)
    for account in (front, back):
        assert account.pages == ring.key_pages == 1 << order
        assert account.size == 32 << order
        assert account.outstanding == 0
    assert front.req_prod == front.rsp_cons == back.req_cons == back.rsp_prod
    assert back.rsp_prod
    assert back.requests == ring.requests, (
        f"the back end made {back.requests} requests for a ring of {ring.requests}"
    )
    assert back.persistent_grants == front.persistent_grants_free
    assert front.persistent_grants_free
    assert front.grants_free is not None
    assert front.grants_free == front.grants
    assert front.persistent_grants_free <= front.grants_free


def test_requests_under_way_are_counted(ends: Ends) -> None:
    ends.load("back")
    ends.connect(order=2)
    lun = RigLun(ends.stack.lun, ends.channel("back"))
    command = ["dd", f"if=/dev/{DISK}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]
    with lun.held(), ends.channel("front").spawn(command):
        lun.await_outstanding(1)
        counts = [account.outstanding for account in shown(ends)]
    assert counts == [1, 1]


@pytest.mark.stack(domu_vcpus=2)
def test_each_queue_and_only_while_connected(ends: Ends) -> None:
    ends.load("back", max_queues=2)
    ends.load("front", max_queues=2, max_ring_page_order=1)
    ends.attach()
    assert len(ends.stack.domain.wait_connected(DISK).queues) == 2
    for queue in (0, 1):
        assert [account.pages for account in shown(ends, queue)] == [2, 2]
    ends.stack.domain.detach(DISK)
    assert ends.stack.domain.queues(DISK).back == ()
    until = time.monotonic() + SETTLES_WITHIN  # dom0 does not wait for the domU's last step
    while ends.stack.domain.queues(DISK).front != ():
        assert time.monotonic() < until, "the front end shows queues of a detached disk"


def test_stock_ends_show_nothing(ends: Ends) -> None:
    ends.load("back", "stock")
    ends.load("front", "stock", max_ring_page_order=1)
    ends.attach()
    ring = ends.stack.domain.wait_connected(DISK)
    assert (ring.views.front, ring.views.back) == (None, None)
    assert (ring.pages, ring.source) == (2, "xenstore")
