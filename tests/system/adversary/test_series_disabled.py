"""The series: a disk whose back end broke the protocol is disabled, and nothing else is.

Stock front ends of 6.1 to 7.3 never end what was on the ring, or waited for room on it; the guest
crashes when the back end says once more that it is connected, and its xenbus hangs at a detach.
"""

from __future__ import annotations

import programs
import pytest
from told_answers import ToldBackEnd

from emu.deadline import Deadline, poll
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun
from emu.xen.xenstore import state_number

pytestmark = pytest.mark.stack(domu_memory=128)

REQUESTS, ON_RING = 40, 32
"""A front end that could have 16 pages asks for more than the back end's one page holds."""
START = """
setsid sh -c '/tmp/blocks write /dev/$1 $2 4096 > /tmp/written 2>&1' sh "$@" > /dev/null 2>&1 &
"""
ENDED = "touch /tmp/written; cat /tmp/written"
ENDED_WITHIN = 20.0


def ended(domu: RigDomu) -> list[str]:
    """What became of the writes, as far as they have ended: "NUMBER RESULT wrong"."""
    return domu.channel.run(["sh", "-c", ENDED], timeout=20).text.splitlines()


def test_disabled_disk_is_let_go(host: RigHost, lun: RigLun) -> None:
    told = ToldBackEnd(host, max_ring_pages=1)
    domu = host.create(disk=lun, ring_pages=16)
    disable(domu, lun, told)
    # As for a change of the capacity.
    host.xen.write(connected(domu))
    domu.detach()
    domu.wait_gone()
    domu.attach(lun)
    assert domu.fill() == domu.sum(), "the disk that replaced it does not hold what was written"


def test_disabled_disk_works_again_after_a_restore(host: RigHost, lun: RigLun) -> None:
    """By another back end. What has failed is not done again."""
    told = ToldBackEnd(host, max_ring_pages=1)
    domu = host.create(disk=lun, ring_pages=16)
    disable(domu, lun, told)
    # What the LUN was asked before ends like any other request.
    lun.await_outstanding(0)
    since = lun.mark()
    domu.save_and_restore(back="patched")
    domu.wait_connected(lun)
    again = [request for request in lun.requests(since) if request.operation == "write"]
    assert not again, f"{len(again)} writes that had failed were done after the restore"
    assert domu.fill() == domu.sum(), "the disk does not hold what was written after the restore"


def connected(domu: RigDomu) -> dict[str, int]:
    """What makes the back end say once more that it is connected."""
    return {f"{domu.domain.back_path()}/state": state_number("Connected")}


def disable(domu: RigDomu, lun: RigLun, told: ToldBackEnd) -> None:
    """Have the back end break the protocol; all requests fail, on the ring or not."""
    host = domu.host
    programs.put("blocks", domu.channel, host.cache)
    with lun.held():
        domu.channel.run(["sh", "-c", START, "sh", FIRST_DISK, str(REQUESTS)], timeout=60)
        domu.wait_outstanding(ON_RING)
        lun.await_outstanding(ON_RING)
        told.answer(FIRST_DISK, "answer 9999 = =")
        lun.release(1)
        assert told.wait(), "the back end has not given its wrong answer"
        # As for a change of the capacity.
        host.xen.write(connected(domu))
        lines = poll(
            lambda: ended(domu),
            Deadline("the writes to end", ENDED_WITHIN),
            until=lambda lines: len(lines) == REQUESTS,
            pause=0.2,
        )
        assert len(lines) == REQUESTS, (
            f"{REQUESTS - len(lines)} of {REQUESTS} writes never end after the back end broke the "
            f"protocol: {ON_RING} were on the ring, the others waited for room"
        )
        good = [line for line in lines if "-5" not in line.split()]
        assert not good, f"the disk was disabled, but writes ended like this: {good}"
        said = domu.log.lines("disabled for further use")
        assert len(said) == 1, f"the front end says {len(said)} times that it disabled the disk"
