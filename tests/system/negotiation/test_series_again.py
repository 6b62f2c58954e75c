"""The series: a second connection in one directory, whatever the first has left there."""

from __future__ import annotations

import re

import pytest
from driver_checks import check_data, check_holds, check_pages, check_queues, check_quiet

from emu.deadline import Deadline, poll
from emu.rig import RigHost, RigLun
from emu.rig.disks import STATE_WITHIN
from emu.rig.keys import FrontEndKeys

STALE = {
    "ring-page-order": 2,
    "num-ring-pages": 4,
    **{f"ring-ref{page}": 8 + page for page in range(4)},
}
STALE_QUEUES = {
    "multi-queue-num-queues": 2,
    **{f"queue-{queue}/ring-ref": 8 + queue for queue in range(2)},
    **{f"queue-{queue}/event-channel": 1 + queue for queue in range(2)},
}


@pytest.mark.parametrize("pages", [1, pytest.param(2, marks=pytest.mark.long), 16])
@pytest.mark.parametrize(
    "stale", [pytest.param(STALE, id="pages"), pytest.param(STALE_QUEUES, id="queues")]
)
def test_keys_of_an_earlier_kernel_are_replaced(
    host: RigHost, lun: RigLun, stale: dict[str, int], pages: int
) -> None:
    domu = host.create(front=None, back_parameters={"max_queues": 4})
    domu.offer(lun)
    FrontEndKeys(domu).publish(stale, "Initialising")
    domu.load_front(max_ring_pages=pages)
    # It has published its keys, whatever the back end made of them.
    domu.wait_front("Initialised", "Connected", "Closing", "Closed")
    front = domu.domain.front_tree()
    left = [key for key in stale if front.get(key) == str(stale[key])]
    left = [key for key in left if key not in ("ring-page-order", "num-ring-pages")]
    assert not left, f"keys of the earlier connection are left beside the new ones: {left}"
    check_pages(domu.wait_connected(), pages)
    check_data(domu)


def test_driver_loaded_again_has_another_ring(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=16)
    check_pages(domu.ring(), 16)
    written = domu.fill()
    for pages in (2, 1, 8):
        domu.unbind_front()
        domu.load_front(max_ring_pages=pages)
        check_pages(domu.wait_connected(), pages)
        check_holds(domu, written)
    check_quiet(domu)


@pytest.mark.long
@pytest.mark.stack(domu_vcpus=2)
def test_driver_loaded_again_has_fewer_queues(host: RigHost, lun: RigLun) -> None:
    two = {"max_queues": 2}
    domu = host.create(disk=lun, ring_pages=4, front_parameters=two, back_parameters=two)
    check_queues(domu.ring(), 2)
    written = domu.fill()
    for queues, pages in ((1, 2), (2, 1), (1, 1), (2, 8)):
        domu.unbind_front()
        domu.load_front(max_queues=queues, max_ring_pages=pages)
        ring = domu.wait_connected()
        check_queues(ring, queues)
        check_pages(ring, pages)
        check_holds(domu, written)
    check_quiet(domu)


def test_unbind_leaves_no_key_for_an_older_driver(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=8)
    domu.unbind_front()
    left = domu.domain.front_tree().children()
    old = [key for key in left if "ring" in key or "queue" in key or key == "event-channel"]
    assert not old, f"the front end left its keys for the next driver to stumble over: {old}"
    domu.detach()
    domu.load_front("stock", max_ring_page_order=1)
    check_pages(domu.attach(lun), 2)


PROBES = """
mount -t tracefs none /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing || exit 1
echo p:order/interrupt unbind_from_irqhandler > kprobe_events
echo p:order/ring xenbus_teardown_ring >> kprobe_events
echo 1 > events/order/enable
"""


def test_unplug_frees_the_interrupt_before_the_ring(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)
    domu.run(PROBES)
    domu.detach()
    until = Deadline("the domU's last step, which dom0 does not wait for", STATE_WITHIN)
    steps: list[str] = poll(
        lambda: re.findall(r": (interrupt|ring): ", domu.run("cat /sys/kernel/tracing/trace")),
        until,
        until=lambda found: len(found) >= 2,
    )
    assert steps == ["interrupt", "ring"], (
        f"the front end frees in the order {steps}: its handler may run on a ring that is gone"
    )
