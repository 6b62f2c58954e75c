"""A domU that is paused: with requests on its ring, and when a disk is to be taken away."""

from __future__ import annotations

import pytest
from driver_checks import check_data

from emu.deadline import Deadline, poll
from emu.errors import NotHeld
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.verifying import Load

ON_RING = 32
ANSWERED_WITHIN = 20.0


def outstanding(domu: RigDomu) -> int:
    """Requests on the ring that the back end has not answered, as that shows them alone."""
    return sum(queue.outstanding or 0 for queue in domu.domain.back_queues() or ())


@pytest.mark.stack(domu_memory=128)
def test_paused_domu_loses_nothing(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun)
    with domu.verifying_io(load=Load(outstanding=ON_RING)) as io:
        io.await_answers(5)
        lun.hold()
        domu.wait_outstanding(ON_RING)
        with domu.paused():
            state = host.xen.domain_info(domu.name).state
            assert "p" in state, f"the domU is {state}, not paused"
            before = outstanding(domu)
            assert before == ON_RING, f"{before} requests are on the ring, not {ON_RING}"
            mark = lun.mark()
            lun.release()
            until = Deadline("answers to a domU that is paused", ANSWERED_WITHIN)
            left = poll(lambda: outstanding(domu), until, until=lambda left: not left)
            assert not left, f"the back end answered all but {left} requests of a paused domU"
            # Whoever consumed an answer would ask for more.
            served = len(lun.requests(mark))
            assert served == ON_RING, f"{served} requests reached the LUN, {ON_RING} were asked for"
        io.await_answers(2 * ON_RING)

    with domu.paused(), pytest.raises(NotHeld) as failed:
        domu.detach()
    said = "not detached: front end Connected, back end Closing, the domU is paused"
    assert said in failed.value.message, f"a paused domU's disk: {failed.value.message}"
    domu.wait_back("Closed")
    domu.wait_front("Closed")
    domu.force_detach()
    domu.wait_gone("xvda")
    domu.attach(lun)
    check_data(domu)
