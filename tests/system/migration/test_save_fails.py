"""A domU that can't be saved goes on, and the test with it."""

from __future__ import annotations

import pytest
from driver_checks import check_holds
from told_answers import Command

from emu.errors import NotHeld
from emu.rig import RigHost, RigLun

READ = "dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct"
FREEZES_WITHIN = "echo 2000 > /sys/power/pm_freeze_timeout"
"""Milliseconds in which the domU's kernel gives up; by default twenty seconds."""


@pytest.mark.timeout(400)
@pytest.mark.stack(domu_memory=128)
def test_task_that_can_not_be_frozen(host: RigHost, lun: RigLun) -> None:
    """It waits for the LUN. xl gives up after a minute, the domU's kernel before."""
    domu = host.create(disk=lun, ring_pages=4)
    written = domu.fill()
    domu.run(FREEZES_WITHIN)
    with lun.held():
        reading = Command(domu, READ)
        lun.await_outstanding(1)
        with pytest.raises(NotHeld, match="xl save of u1 ended with status") as failed:
            domu.save()
        said = "\n".join(failed.value.lines)
        assert "refusing to freeze" in said, f"the domU's own words are missing: {said}"
        assert "task:dd" in said, f"the task that could not be frozen is not named: {said}"
    ended = reading.wait()
    assert ended == 0, f"the reader ended with {ended} when the LUN had answered"
    domu.domain.console.sendline("echo its console $((1 + 1))")
    domu.domain.console.expect("its console 2", timeout=30)
    check_holds(domu, written)
    domu.save_and_restore()
    check_holds(domu, written)
