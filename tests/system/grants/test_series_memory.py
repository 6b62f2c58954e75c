"""The series: a disk takes the memory that its requests need, not what they might."""

from __future__ import annotations

import re

import pytest
from marks import LATER

from emu.channel.channel import Channel
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
    assert found
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
    assert (ring.pages, ring.requests) == (pages, 32 * pages)
    taken = before - available(domu.channel)
    words = f"{ring.pages} pages, idle: {taken / MIB:.1f} MiB"
    print(words)
    assert taken < IDLE_MIB * MIB, f"the front end takes memory for what nobody asked: {words}"
    assert domu.fill(lun, MIB_READ) == domu.sum(lun, MIB_READ)


MANY = """
echo none > /sys/block/$1/queue/scheduler
echo 3 > /proc/sys/vm/drop_caches
for n in 0 1 2 3 4 5 6 7; do
    dd if=/dev/$1 of=/dev/null bs=4M count=8 skip=$((n * 8)) 2>/dev/null &
done
wait
dd if=/dev/$1 bs=1M count=$2 2>/dev/null | sha256sum
"""


def read_many(domu: RigDomu, lun: RigLun) -> str:
    """Read more at once than the memory holds; the SHA-256 of what is compared."""
    words = ["sh", "-c", MANY, "sh", domu.disk(lun), str(MIB_READ)]
    return domu.channel.run(words, timeout=120).text.split()[0]


@pytest.mark.stack(kernel="lab", domu_memory=128)
def test_large_requests_wait_for_grants(host: RigHost, lun: RigLun) -> None:
    """More is asked for at once than an eighth of the memory: nothing fails, nothing hangs."""
    domu = host.create(disk=lun, ring_pages=PAGES)
    written = domu.fill(lun, MIB_READ)
    assert read_many(domu, lun) == written
    domu.detach(lun)
    domu.attach(lun)
    assert domu.sum(lun, MIB_READ) == written


@pytest.mark.stack(kernel="lab")
def test_back_end_keeps_room_for_what_is_asked(host: RigHost, lun: RigLun) -> None:
    """2048 requests, of which few are large at a time."""
    domu = host.create(ring_pages=PAGES, back_parameters={"feature_persistent": 0})
    before = available(host.dom0)
    assert domu.attach(lun).pages == PAGES
    taken = before - available(host.dom0)
    print(f"64 pages, idle: {taken / MIB:.1f} MiB of dom0")
    assert taken < IDLE_MIB * MIB
    written = domu.fill(lun, MIB_READ)
    assert read_many(domu, lun) == written
