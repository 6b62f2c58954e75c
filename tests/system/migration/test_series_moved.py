"""The series: saved and restored under a host that allows another ring, while it is used."""

from __future__ import annotations

import contextlib
import time

import pytest
from ends import DISK, LATER, SETTLES_WITHIN, Ends
from moves import held, outstanding, reconnected, restore, save, saving

RINGS = pytest.mark.parametrize(
    ("first", "then"),
    [
        (64, 2),
        pytest.param(1, 16, marks=pytest.mark.long),
        pytest.param(16, 2, marks=[LATER, pytest.mark.long], id="16-2, 6.12"),
    ],
)
READERS = 40
"""One request each: more than a ring of one page holds."""
READ = """
rm -f /tmp/failed
echo none > /sys/block/$1/queue/scheduler
n=0
while [ $n -lt $2 ]; do
    (dd if=/dev/$1 of=/dev/null bs=4k skip=$((n * 1600)) iflag=direct || touch /tmp/failed) \\
        > /dev/null 2>&1 &
    n=$((n + 1))
done
"""
READ_ON = """
disk=$1
reads() { set -- $(cat /sys/block/$disk/stat); echo $1; }
until=$(($(reads) + 10 * $2))
until [ $(reads) -ge $until ]; do usleep 100000; done
[ ! -e /tmp/failed ]
"""
# A request that nobody answers holds its reader for ever, killed or not.
END = """
killall -9 dd
n=0
while pidof dd > /dev/null; do
    n=$((n + 1)); [ $n -lt 200 ] || exit 1
    usleep 50000
done
"""


HELD_MIB = 16
"""More requests than a ring of 2 pages holds: one carries 128 KiB."""
# The flusher begins at once, nobody waits for it, and the last close is yet to come: what is
# in flight then holds no process, which could not be frozen for the save.
WRITE = """
set -e
cd /sys/block/$1/queue
echo none > scheduler
echo 0 > wbt_lat_usec 2> /dev/null || true  # where it throttles, 48 are in flight at most
sleep 1000 < /dev/$1 > /dev/null 2>&1 &
cd /proc/sys/vm
echo 90 > dirty_ratio
echo 1 > dirty_background_bytes
echo 10 > dirty_writeback_centisecs
echo 1 > dirty_expire_centisecs
dd if=/dev/urandom of=/tmp/data bs=1M count=$2 2>/dev/null
dd if=/tmp/data of=/dev/$1 bs=1M conv=notrunc 2>/dev/null
sha256sum < /tmp/data
"""


def connect(ends: Ends, pages: int) -> None:
    """Connect with as many pages as the back end allows: `pages`."""
    ends.load("back", max_ring_pages=pages)
    ends.load("front", max_ring_pages=64)
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == pages


def allow(ends: Ends, pages: int) -> None:
    """Let the back end allow so many pages from the next connection on."""
    limit = "/sys/module/xen_blkback/parameters/max_ring_pages"
    ends.channel("back").run(f"echo {pages} > {limit}", timeout=20)


@pytest.mark.stack(kernel="lab", domu_memory=64)
@RINGS
def test_ring_changes_over_a_restore(ends: Ends, first: int, then: int) -> None:
    connect(ends, first)
    written = ends.fill_disk()
    domu = ends.channel("front")
    domu.run(["sh", "-c", READ, "sh", DISK, str(READERS)], timeout=30)
    domu.run(["sh", "-c", READ_ON, "sh", DISK, str(READERS)], timeout=90)
    allow(ends, then)
    # The guest's console driver prints a WARNING of its own for its second console.
    with ends.stack.machine.watch.allow("kernel WARNING", guest=ends.stack.domain.name):
        save(ends)
        restore(ends)
        reconnected(ends)
        domu = ends.channel("front")
        domu.run(["sh", "-c", READ_ON, "sh", DISK, str(READERS)], timeout=90)
        assert ends.stack.domain.wait_connected(DISK).pages == then
        domu.run(["sh", "-c", END], timeout=60)
        assert ends.sum_of_disk() == written
    assert ends.errors() == []


@pytest.mark.stack(kernel="lab", domu_memory=128)
@RINGS
def test_writes_in_flight_are_done(ends: Ends, first: int, then: int) -> None:
    """The kernel writes its cache back while the LUN stands still, until the domU is suspended.

    Requests that a process waits for never are: it can't be frozen before they are answered.
    """
    connect(ends, first)
    with ends.stack.machine.watch.allow("kernel WARNING", guest=ends.stack.domain.name):
        with contextlib.ExitStack() as hold:
            hold.enter_context(held(ends))
            command = ["sh", "-c", WRITE, "sh", DISK, str(HELD_MIB)]
            written = ends.channel("front").run(command, timeout=60).text.split()[0]
            until = time.monotonic() + SETTLES_WITHIN
            while (now := outstanding(ends.stack.domain)) <= min(64, 32 * first - 1):
                assert time.monotonic() < until, f"{now} requests in flight"
            allow(ends, then)
            with saving(ends):
                hold.close()
        restore(ends)
        reconnected(ends)
        ends.channel("front").run(["sync"], timeout=60)
        assert ends.stack.domain.wait_connected(DISK).pages == then
        assert outstanding(ends.stack.domain) == 0
        assert ends.sum_of_disk(HELD_MIB) == written
    assert ends.errors() == []
