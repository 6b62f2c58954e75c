"""The series: a back end is connected when it can serve requests, and not before.

Stock back ends (6.1 to 7.3) switch to Connected first: what fails after that leaves a disk on which
everything hangs, or a thread that is stopped once more after it is gone.
"""

from __future__ import annotations

import contextlib

import pytest
from back_ends import back_end

from emu.channel.channel import CommandFailed
from emu.deadline import Deadline, poll
from emu.rig import FIRST_DISK, Ledger, RigDomu, RigHost, RigLun
from emu.rig.disks import STATE_WITHIN

QUEUES = {"max_queues": 2}
REFUSED = ("Closing", "Closed", "absent")
DIRTY = """
sleep 600 < $1 > /dev/null 2>&1 &
echo $!
dd if=/dev/zero of=$1 bs=4k count=1 conv=notrunc 2> /dev/null
"""
"""The last one to close a device writes its dirty pages out: sleep is to be the last."""


def attempt(domu: RigDomu) -> tuple[str, str]:
    """Give the domU a disk that can't be served: its back end's state, and the errors it logs."""
    domu.host.log.mark()
    with contextlib.suppress(CommandFailed):
        domu.domain.attach(domu.host.lun.lun, FIRST_DISK)
    errors = poll(domu.errors, Deadline("the back end's error", STATE_WITHIN), pause=0.1)
    state = poll(
        lambda: domu.domain.back_tree().state(),
        Deadline("the disk to be refused", STATE_WITHIN),
        until=lambda now: now in REFUSED or now == "Connected",
        pause=0.1,
    )
    return state, "; ".join(errors)


def clear_away(domu: RigDomu) -> None:
    """Take the disk away, in whatever state it is."""
    words = ["xl", "block-detach", str(domu.domain.domid), FIRST_DISK]
    domu.host.dom0.run(words, timeout=60, check=False)
    if domu.domain.back_tree().state() != "absent":
        try:
            domu.force_detach(FIRST_DISK)
        except CommandFailed as error:
            pytest.fail(f"a disk that was refused can't be taken away: {error}")
    domu.wait_gone(FIRST_DISK)


def serves(domu: RigDomu, lun: RigLun) -> None:
    """The same disk can be served, and is."""
    domu.attach(lun)
    assert domu.fill() == domu.sum(), "the disk does not hold what was written"
    domu.detach()


def test_dirty_pages_cannot_be_written(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """What dom0 has in its cache for the LUN is lost: the disk is refused, not left to hang."""
    domu = host.create()
    serves(domu, lun)
    with ledger.unchanged():
        lun.fail(kinds="writes")
        sleeper = host.dom0.run(["sh", "-c", DIRTY, "sh", lun.device], timeout=30).text.strip()
        state, error = attempt(domu)
        assert state in REFUSED, f"the back end is {state}, and serves no request, after: {error}"
        assert "block flush" in error, f"refused for something else: {error}"
        clear_away(domu)
        lun.clear()
        host.dom0.run(["kill", sleeper], timeout=20)
    serves(domu, lun)


@pytest.mark.stack(domu_vcpus=2)
def test_thread_cannot_be_started(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """That of the first queue, or of the second, when one runs already."""
    host.load_back(back_end(host, "thread-fails"), **QUEUES)
    domu = host.create(front_parameters=QUEUES)
    serves(domu, lun)
    with ledger.unchanged():
        for queue in (0, 1, 1):
            host.set_back(fail_thread=queue + 1)
            state, error = attempt(domu)
            assert state in REFUSED, f"queue {queue} has no thread, but the back end is {state}"
            assert f"-{queue} xenblkd" in error, f"refused for something else: {error}"
            clear_away(domu)
    serves(domu, lun)
