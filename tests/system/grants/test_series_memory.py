"""The series: a disk takes the memory that its requests need, not what they might."""

from __future__ import annotations

import re

import pytest
from ends import DISK, LATER, Ends

from emu.images.modules import End

MIB = 1 << 20
ORDER = 6
IDLE_MIB = 16
"""What a connected disk may take of the domU's memory before any request."""
MIB_READ = 8
"""What is compared; how much is asked for at once does not depend on it (MANY)."""


def available(ends: Ends, end: End = "front") -> int:
    """Bytes of MemAvailable where an end runs."""
    text = ends.channel(end).run(["cat", "/proc/meminfo"], timeout=20).text
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    assert found
    return int(found[1]) * 1024


@pytest.mark.stack(kernel="lab", domu_memory=128)
@pytest.mark.parametrize(
    "order",
    [
        ORDER,
        pytest.param(4, marks=pytest.mark.long),
        pytest.param(4, marks=[LATER, pytest.mark.long], id="4, 6.12"),
    ],
)
def test_idle_disk_takes_little(ends: Ends, order: int) -> None:
    """64 pages work in 128 MiB; a stock front end takes 4 MiB a page, before any request."""
    ends.load("back")
    ends.load("front", max_ring_page_order=order)
    before = available(ends)
    ends.attach()
    ring = ends.stack.domain.wait_connected(DISK)
    assert (ring.pages, ring.requests) == (1 << order, 32 << order)
    taken = before - available(ends)
    told = f"{ring.pages} pages, idle: {taken / MIB:.1f} MiB"
    print(told)
    assert taken < IDLE_MIB * MIB, f"the front end takes memory for what nobody asked: {told}"
    assert ends.fill_disk(MIB_READ) == ends.sum_of_disk(MIB_READ)


MANY = """
echo none > /sys/block/$1/queue/scheduler
echo 3 > /proc/sys/vm/drop_caches
for n in 0 1 2 3 4 5 6 7; do
    dd if=/dev/$1 of=/dev/null bs=4M count=8 skip=$((n * 8)) 2>/dev/null &
done
wait
dd if=/dev/$1 bs=1M count=$2 2>/dev/null | sha256sum
"""


@pytest.mark.stack(kernel="lab", domu_memory=128)
def test_large_requests_wait_for_grants(ends: Ends) -> None:
    """More is asked for at once than an eighth of the memory: nothing fails, nothing hangs."""
    ends.load("back")
    ends.connect(order=ORDER)
    written = ends.fill_disk(MIB_READ)
    done = ends.channel("front").run(["sh", "-c", MANY, "sh", DISK, str(MIB_READ)], timeout=120)
    assert done.text.split()[0] == written
    ends.stack.domain.detach(DISK)
    ends.attach()
    ends.stack.domain.wait_connected(DISK)
    assert ends.sum_of_disk(MIB_READ) == written


@pytest.mark.stack(kernel="lab")
def test_back_end_keeps_room_for_what_is_asked(ends: Ends) -> None:
    """2048 requests, of which few are large at a time."""
    ends.load("back", feature_persistent=0)
    ends.load("front", max_ring_page_order=ORDER)
    before = available(ends, "back")
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == 1 << ORDER
    taken = before - available(ends, "back")
    print(f"64 pages, idle: {taken / MIB:.1f} MiB of dom0")
    assert taken < IDLE_MIB * MIB
    written = ends.fill_disk(MIB_READ)
    done = ends.channel("front").run(["sh", "-c", MANY, "sh", DISK, str(MIB_READ)], timeout=120)
    assert done.text.split()[0] == written
