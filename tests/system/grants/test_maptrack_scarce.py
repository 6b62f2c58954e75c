"""dom0 has too few maptrack entries for what its disks map at once: I/O is slow, or fails."""

from __future__ import annotations

import pytest
from driver_checks import check_pages

from emu.deadline import Deadline, poll
from emu.rig import Ledger, RigDomu, RigHost, RigLun

FRAMES, ENTRIES = 2, 512
"""Frames of Xen's maptrack table, and how many grants dom0 can map with them (of 16 bytes)."""
SCARCE = pytest.mark.stack(xen_options=f"gnttab_max_maptrack_frames={FRAMES}")
READERS, LARGEST = 32, 32
"""Readers with a request under way each, of so many pages."""
READ_ALL = """
echo none > /sys/block/$1/queue/scheduler
rm -f /tmp/ended.*
for n in $(seq $2); do
    (dd if=/dev/$1 of=/dev/null bs=128k count=1 skip=$n iflag=direct 2> /dev/null
     echo $? > /tmp/ended.$n) &
done
wait
"""
ENDED = "cat /tmp/ended.* 2> /dev/null || true"
FAILED_WITHIN = 30.0
MIB = 8


def ended(domu: RigDomu) -> list[int]:
    """The statuses of the readers that have ended."""
    return [int(line) for line in domu.run(ENDED).split()]


@SCARCE
@pytest.mark.parametrize("persistent", [0, 1])
def test_requests_that_can_not_be_mapped_fail(
    host: RigHost, lun: RigLun, ledger: Ledger, persistent: int
) -> None:
    """With an error, at once; those that are mapped are done, and later ones, too."""
    domu = host.create(ring_pages=16, back_parameters={"feature_persistent": persistent})
    with ledger.unchanged():
        check_pages(domu.attach(lun), 16)
        written = domu.fill(lun, mib=MIB)
        words = ["sh", "-c", READ_ALL, "sh", domu.block(lun), str(READERS)]
        with lun.held(), domu.channel.spawn(words) as reading:
            until = Deadline("requests that can't be mapped", FAILED_WITHIN)
            now = poll(lambda: ended(domu), until, until=lambda now: bool(now))
            assert now, f"{READERS} requests of {LARGEST} pages are mapped with {ENTRIES} entries"
            assert 0 not in now, f"of readers on a held LUN some have ended well: {now}"
            mapped = len(domu.mapped_refs())
            assert mapped <= ENTRIES, f"dom0 maps {mapped} grants with {ENTRIES} entries"
            ledger.look()
            lun.release()
            reading.wait(60)
        done = ended(domu).count(0)
        assert 0 < done < READERS, f"{done} of {READERS} readers were done"
        assert domu.sum(lun, mib=MIB) == written, (
            "what is read when entries can be had again is not what was written"
        )
        assert domu.fill(lun, mib=MIB) == domu.sum(lun, mib=MIB), "later writes are not all done"
        domu.detach(lun)
