"""The series: saved and restored under a host that allows another ring, while it is used."""

from __future__ import annotations

import pytest
from driver_checks import check_holds, check_pages, check_quiet
from marks import LATER

from emu.rig import RigDomu, RigHost, RigLun

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
# A request that is never answered holds its reader for ever, killed or not.
ENDED = "! pidof dd > /dev/null"
ENDED_WITHIN = 10.0

HELD_MIB = 16
"""More requests than a ring of 2 pages holds: one carries 128 KiB."""
# The flusher begins at once, no process waits for it, and the last close is yet to come: what is
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


def connected(host: RigHost, lun: RigLun, pages: int) -> RigDomu:
    """A domU with as many ring pages as the back end allows: `pages`."""
    domu = host.create(disk=lun, ring_pages=64, max_ring_pages=pages)
    check_pages(domu.ring(lun), pages)
    return domu


@pytest.mark.stack(kernel="lab", domu_memory=64)
@RINGS
def test_ring_changes_over_a_restore(host: RigHost, lun: RigLun, first: int, then: int) -> None:
    domu = connected(host, lun, first)
    written = domu.fill(lun)
    read_on = ["sh", "-c", READ_ON, "sh", domu.disk(lun), str(READERS)]
    domu.channel.run(["sh", "-c", READ, "sh", domu.disk(lun), str(READERS)], timeout=30)
    domu.channel.run(read_on, timeout=90)
    domu.save_and_restore(max_ring_pages=then)
    domu.channel.run(read_on, timeout=90)
    check_pages(domu.ring(lun), then)
    domu.channel.run("killall -9 dd", timeout=20, check=False)
    domu.channel.wait_until(ENDED, "the readers to end", ENDED_WITHIN)
    check_holds(domu, written, lun)
    check_quiet(domu)


@pytest.mark.stack(kernel="lab", domu_memory=128)
@RINGS
def test_writes_in_flight_are_done(host: RigHost, lun: RigLun, first: int, then: int) -> None:
    """The kernel writes its cache back while the LUN holds them, until the domU is suspended.

    Requests that a process waits for never are: it can't be frozen before they are answered.
    """
    domu = connected(host, lun, first)
    with lun.held():
        command = ["sh", "-c", WRITE, "sh", domu.disk(lun), str(HELD_MIB)]
        written = domu.channel.run(command, timeout=60).text.split()[0]
        domu.wait_outstanding(min(65, 32 * first), or_more=True)
        host.set_back(max_ring_pages=then)
        with domu.saving():
            lun.release()
    domu.restore()
    domu.run("sync")
    check_pages(domu.ring(lun), then)
    left = domu.outstanding(lun)
    assert not left, f"{left} requests are outstanding after all was written and synced"
    check_holds(domu, written, lun, HELD_MIB)
    check_quiet(domu)
