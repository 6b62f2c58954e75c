"""The series: a second connection in one directory, whatever the first has left there."""

from __future__ import annotations

import re
import time

import pytest
from ends import DISK, SETTLES_WITHIN, Ends

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
def test_keys_of_an_earlier_kernel(ends: Ends, stale: dict[str, int], pages: int) -> None:
    ends.load("back", max_queues=4)
    ends.attach()
    ends.publish(stale, state="Initialising")
    ends.load("front", max_ring_page_order=pages.bit_length() - 1)
    until = time.monotonic() + SETTLES_WITHIN
    while (front := ends.stack.domain.front_tree(DISK)).state() == "Initialising":
        assert time.monotonic() < until, "the front end publishes nothing"
        time.sleep(0.05)
    left = [key for key in stale if front.get(key) == str(stale[key])]
    left = [key for key in left if key not in ("ring-page-order", "num-ring-pages")]
    assert not left, f"keys of the earlier connection stand beside the new ones: {left}"
    assert ends.stack.domain.wait_connected(DISK).pages == pages
    assert ends.fill_disk() == ends.sum_of_disk()


def test_loaded_again_with_another_ring(ends: Ends) -> None:
    ends.load("back")
    assert ends.connect(order=4).pages == 16
    written = ends.fill_disk()
    for pages in (2, 1, 8):
        ends.unbind_front()
        ends.load("front", max_ring_page_order=pages.bit_length() - 1)
        assert ends.stack.domain.wait_connected(DISK).pages == pages
        assert ends.sum_of_disk() == written
    assert ends.errors() == []


@pytest.mark.long
@pytest.mark.stack(domu_vcpus=2)
def test_loaded_again_with_fewer_queues(ends: Ends) -> None:
    ends.load("back", max_queues=2)
    ends.load("front", max_queues=2, max_ring_page_order=2)
    ends.attach()
    assert len(ends.stack.domain.wait_connected(DISK).queues) == 2
    written = ends.fill_disk()
    for queues, order in ((1, 1), (2, 0), (1, 0), (2, 3)):
        ends.unbind_front()
        ends.load("front", max_queues=queues, max_ring_page_order=order)
        ring = ends.stack.domain.wait_connected(DISK)
        assert (len(ring.queues), ring.pages) == (queues, 1 << order)
        assert ends.sum_of_disk() == written
    assert ends.errors() == []


def test_nothing_is_left_for_an_older_driver(ends: Ends) -> None:
    ends.load("back")
    ends.connect(order=3)
    ends.unbind_front()
    left = ends.stack.domain.front_tree(DISK).children()
    old = [key for key in left if "ring" in key or "queue" in key or key == "event-channel"]
    assert not old, f"the front end left its keys for the next driver to stumble over: {old}"
    ends.stack.domain.detach(DISK)
    ends.load("front", "stock", max_ring_page_order=1)
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == 2


PROBES = """
mount -t tracefs none /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing || exit 1
echo p:order/interrupt unbind_from_irqhandler > kprobe_events
echo p:order/ring xenbus_teardown_ring >> kprobe_events
echo 1 > events/order/enable
"""


def test_unplug_frees_the_interrupt_before_the_ring(ends: Ends) -> None:
    ends.load("back")
    ends.connect(order=2)
    domu = ends.channel("front")
    domu.run(PROBES, timeout=20)
    ends.stack.domain.detach(DISK)
    until = time.monotonic() + SETTLES_WITHIN  # dom0 does not wait for the domU's last step
    steps: list[str] = []
    while len(steps) < 2 and time.monotonic() < until:
        trace = domu.run(["cat", "/sys/kernel/tracing/trace"], timeout=20).text
        steps = re.findall(r": (interrupt|ring): ", trace)
    assert steps == ["interrupt", "ring"], (
        f"the front end frees in the order {steps}: its handler may run on a ring that is gone"
    )
