"""The series: a disk takes the memory that its requests need, not what they might."""

from __future__ import annotations

import re

import pytest
from driver_checks import check_data, check_holds, check_pages, shown
from marks import LATER

from emu.channel.channel import Channel
from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun

MIB = 1 << 20
PAGES = 64
IDLE_MIB = 16
"""What a connected disk may take of the domU's memory before any request."""
MIB_READ = 8
"""What is compared; how much is asked for at once does not depend on it (MANY)."""


def available(guest: Channel) -> int:
    """Bytes of a guest's MemAvailable."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", guest.run("cat /proc/meminfo", timeout=20).text)
    assert found, f"{guest.name} shows no MemAvailable"
    return int(found[1]) * 1024


@pytest.mark.stack(kernel="lab", domu_memory=128)
@pytest.mark.parametrize(
    "pages",
    [
        PAGES,
        pytest.param(16, marks=pytest.mark.long),
        pytest.param(16, marks=[LATER, pytest.mark.long], id="16, 6.12"),
    ],
)
def test_idle_disk_takes_little(host: RigHost, lun: RigLun, pages: int) -> None:
    """64 pages work in 128 MiB; a stock front end takes 4 MiB a page, before any request."""
    domu = host.create(ring_pages=pages)
    before = available(domu.channel)
    ring = domu.attach(lun)
    check_pages(ring, pages)
    assert ring.requests == 32 * pages, f"a ring of {pages} pages holds {ring.requests} requests"
    taken = before - available(domu.channel)
    words = f"{ring.pages} pages, idle: {taken / MIB:.1f} MiB"
    print(words)
    assert taken < IDLE_MIB * MIB, f"the front end takes memory for what nobody asked: {words}"
    check_data(domu, lun, MIB_READ)


MANY = """
echo none > /sys/block/$1/queue/scheduler
echo 3 > /proc/sys/vm/drop_caches
for n in 0 1 2 3 4 5 6 7; do
    (dd if=/dev/$1 of=/dev/null bs=4M count=2 skip=$((n * 2)) iflag=direct 2>/tmp/said.$n ||
        cat /tmp/said.$n >&2) &
done
wait
dd if=/dev/$1 bs=1M count=$2 2>/dev/null | sha256sum
"""
MIXED_UP = "what was read beside many large requests is not what was written"
OF_THE_LARGEST = 33
"""Grants that a request of 128 KiB takes: 32 pages, and one for the list of them."""
SCARCE_WITHIN = 30.0


def read_many(domu: RigDomu, lun: RigLun, *, scarce: bool = False) -> str:
    """Read 32 MiB at once; the SHA-256 of what is compared."""
    words = ["sh", "-c", MANY, "sh", domu.disk(lun), str(MIB_READ)]
    with lun.held(), domu.channel.spawn(words) as reading:
        if scarce:
            wait_scarce(domu)
        lun.release()
        reading.wait(120)
        said = reading.read(stream=2).decode()
        assert not said, f"of eight readers at once some failed: {said}"
        return reading.read().decode().split()[0]


def wait_scarce(domu: RigDomu) -> None:
    """Wait until a request of the largest size finds no grants, and so has to wait."""

    def left() -> int:
        front, _ = shown(domu)
        return (front.grants_max or 0) - (front.grants or 0) + (front.grants_free or 0)

    until = Deadline("grants to be scarce", SCARCE_WITHIN)
    now = poll(left, until, until=lambda number: number < OF_THE_LARGEST, pause=0.2)
    assert now < OF_THE_LARGEST, f"{now} more grants could be had: no request had to wait for any"


@pytest.mark.stack(kernel="lab", domu_memory=128)
def test_large_requests_wait_for_grants(host: RigHost, lun: RigLun) -> None:
    """More is asked for at once than an eighth of the memory: nothing fails, nothing hangs."""
    domu = host.create(disk=lun, ring_pages=PAGES)
    written = domu.fill(lun, MIB_READ)
    assert read_many(domu, lun, scarce=True) == written, MIXED_UP
    domu.detach(lun)
    domu.attach(lun)
    check_holds(domu, written, lun, MIB_READ)


SMALL = 8
"""Requests of a page beside one of the largest, whose grants a disk has in any case."""
READ_BOTH = """
echo none > /sys/block/$1/queue/scheduler
for n in $(seq $2); do
    dd if=/dev/$1 of=/dev/null bs=4k count=1 skip=$n iflag=direct 2>/dev/null &
done
while read -r _ _ _ _ _ _ _ _ under_way _ < /sys/block/$1/stat; [ $under_way -lt $2 ]; do :; done
dd if=/dev/$1 of=/dev/null bs=128k count=1 skip=1 iflag=direct 2>/dev/null
wait
"""


def test_disk_grants_what_its_requests_need(host: RigHost, lun: RigLun) -> None:
    """What is missing for a request is added, and no more."""
    domu = host.create(disk=lun, ring_pages=4)
    idle, _ = shown(domu)
    assert idle.grants == OF_THE_LARGEST, (
        f"an idle disk has {idle.grants} grants, not those of a request"
    )
    words = ["sh", "-c", READ_BOTH, "sh", domu.disk(lun), str(SMALL)]
    with lun.held(), domu.channel.spawn(words):
        lun.await_outstanding(SMALL + 1)
        busy, _ = shown(domu)
    grants = (busy.grants, busy.grants_free)
    assert grants == (SMALL + OF_THE_LARGEST, 0), (
        f"for {SMALL} requests of a page and one of {OF_THE_LARGEST} grants there are {grants[0]}, "
        f"{grants[1]} of them free"
    )


@pytest.mark.stack(kernel="lab")
def test_back_end_keeps_room_for_what_is_asked(host: RigHost, lun: RigLun) -> None:
    """2048 requests, of which few are large at a time."""
    domu = host.create(ring_pages=PAGES, back_parameters={"feature_persistent": 0})
    before = available(host.dom0)
    check_pages(domu.attach(lun), PAGES)
    taken = before - available(host.dom0)
    print(f"64 pages, idle: {taken / MIB:.1f} MiB of dom0")
    assert taken < IDLE_MIB * MIB, (
        f"the back end takes {taken / MIB:.1f} MiB of dom0 for requests that nobody asked for"
    )
    written = domu.fill(lun, MIB_READ)
    assert read_many(domu, lun) == written, MIXED_UP
