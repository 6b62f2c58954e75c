"""The series: both drivers show their queues, and the two accounts agree."""

from __future__ import annotations

import pytest

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.disks import STATE_WITHIN
from emu.xen.queues import BackQueue, FrontQueue

READ = "dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct"


def shown(domu: RigDomu, queue: int = 0) -> tuple[FrontQueue, BackQueue]:
    """What the two ends show of one queue."""
    views = domu.queues()
    assert views.front, "the front end shows no queue"
    assert views.back, "the back end shows no queue"
    return views.front[queue], views.back[queue]


@pytest.mark.parametrize("pages", [1, 16])
def test_ends_agree(host: RigHost, lun: RigLun, pages: int) -> None:
    domu = host.create(disk=lun, ring_pages=pages)
    ring = domu.ring(lun)
    domu.fill(lun)
    wrong = list(ring.disagreements())
    assert not wrong, f"an end shows another ring than was negotiated: {wrong}"
    front, back = shown(domu)
    for account in (front, back):
        assert account.pages == ring.key_pages == pages
        assert account.size == 32 * pages
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


def test_outstanding_requests_are_counted(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)
    with lun.held(), domu.channel.spawn(READ):
        lun.await_outstanding(1)
        counts = [account.outstanding for account in shown(domu)]
    assert counts == [1, 1]


@pytest.mark.stack(domu_vcpus=2)
def test_each_queue_is_shown_while_connected(host: RigHost, lun: RigLun) -> None:
    two = {"max_queues": 2}
    domu = host.create(disk=lun, ring_pages=2, front_parameters=two, back_parameters=two)
    assert len(domu.ring(lun).queues) == 2
    for queue in (0, 1):
        assert [account.pages for account in shown(domu, queue)] == [2, 2]
    domu.detach(lun)
    assert domu.queues().back == ()
    until = Deadline("the domU's last step, which dom0 does not wait for", STATE_WITHIN)
    left = poll(lambda: domu.queues().front, until, until=lambda front: front == ())
    assert left == (), "the front end shows queues of a detached disk"


def test_stock_ends_show_nothing(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, front="stock", back="stock", ring_pages=2)
    ring = domu.ring(lun)
    assert (ring.views.front, ring.views.back) == (None, None)
    assert (ring.pages, ring.source) == (2, "xenstore")
