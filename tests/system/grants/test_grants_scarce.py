"""A grant table that is too small for what a ring could ask slows the guest, and no more."""

from __future__ import annotations

import pytest
from driver_checks import check_pages

from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.xen import granted

PAGES, FRAMES = 64, 2
"""2048 requests of 32 segments ask for 65 times the 1024 references of the table."""
MIB = 32
READERS = """
echo none > /sys/block/$1/queue/scheduler
for n in 0 1 2 3 4 5 6 7; do
    dd if=/dev/$1 of=/tmp/part.$n bs=4M count=1 skip=$n iflag=direct 2> /tmp/log.$n &
done
wait
cat /tmp/part.? | sha256sum; cat /tmp/log.?; rm /tmp/part.? /tmp/log.?
"""
MANAGES_WITHIN = 120.0
"""Seconds for 32 MiB; with grants for all requests it takes two or three."""


def fewest_free(domu: RigDomu, lun: RigLun) -> tuple[int, str]:
    """Read all at once; the least number of free references meanwhile, and the sum."""
    reading = domu.channel.spawn(["sh", "-c", READERS, "sh", domu.disk(lun)])
    fewest = granted.read_account(domu.channel).free
    while reading.ended is None:
        fewest = min(fewest, granted.read_account(domu.channel).free)
    reading.wait(MANAGES_WITHIN)
    return fewest, reading.read(4096).decode().split()[0]


@pytest.mark.timeout(300)
@pytest.mark.stack(kernel="lab", grant_frames=FRAMES)
@pytest.mark.parametrize("persistent", [0, 1])
def test_requests_wait_for_references(
    host: RigHost, lun: RigLun, ledger: Ledger, persistent: int
) -> None:
    domu = host.create(ring_pages=PAGES, back_parameters={"feature_persistent": persistent})
    with ledger.unchanged():
        check_pages(domu.attach(lun), PAGES)
        written = domu.fill(lun, mib=MIB)
        ledger.look()
        fewest, read = fewest_free(domu, lun)
        assert fewest < 64, f"never fewer than {fewest} references were free: nothing was scarce"
        assert read == written, (
            "what was read with few references free is not what was written: "
            f"SHA-256 {read[:12]}…, not {written[:12]}…"
        )
        domu.detach(lun)
