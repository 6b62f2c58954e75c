"""A grant table that is too small for what a ring could ask slows the guest, and no more."""

from __future__ import annotations

import failing_calls
import pytest
from driver_checks import READ_ONE, check_pages
from failing_calls import FailingCalls
from told_answers import Command

from emu.images.context import BuildContext
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


ALLOCATES = "gnttab_alloc_grant_references"


def test_request_waits_for_references_with_none_under_way(
    host: RigHost, lun: RigLun, context: BuildContext
) -> None:
    """No answer comes that would have its queue go on: that there are references again does."""
    domu = host.create(disk=lun, back_parameters={"feature_persistent": 0})
    module = failing_calls.module(host, "front", context)
    calls = FailingCalls(lambda: domu.channel, "xen_blkfront", module)
    read = READ_ONE.format(domu.disk(lun))
    calls.watch()
    domu.run(read)
    found = [call for call in calls.made() if call.function == ALLOCATES]
    assert found, "the front end allocates no references for a read, though none is persistent"
    for call in found:
        calls.fail(call, 1)
        ended = Command(domu, read).wait()
        assert calls.has_failed(), f"a read called {ALLOCATES} no more from {call.site}"
        assert ended == 0, (
            f"a read for which there were no references ended with {ended} (None: not at all), "
            "though there are enough since"
        )
