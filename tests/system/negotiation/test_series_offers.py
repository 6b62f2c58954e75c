"""The series: what the back end has offered holds, whatever its parameters become meanwhile.

Stock back ends (6.1 to 7.3) check the number of queues against the parameter's value of that
moment: lowered between the offer and the connection, or before a second connection, they refuse
the front end for what it was offered.
"""

from __future__ import annotations

import pytest
from driver_checks import check_data

from emu.errors import NotHeld
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.keys import FrontEndKeys

QUEUES = 2
ONE_QUEUE = {"event-channel": 1, "ring-ref": 8}


def queues(domu: RigDomu) -> str:
    """With how many queues the disk gets connected, or what the back end reports instead."""
    try:
        domu.wait_connected()
    except NotHeld:
        return domu.domain.error("back") or "no connection, and no error"
    return f"{len(domu.ring().queues)} queues"


@pytest.mark.stack(domu_vcpus=2)
def test_offer_of_queues_holds(host: RigHost, lun: RigLun) -> None:
    domu = host.create(front=None, back_parameters={"max_queues": QUEUES})
    wrong: dict[str, str] = {}

    def check(what: str, want: int) -> None:
        got = queues(domu)
        if got != f"{want} queues":
            wrong[what] = f"{got}, not {want} queues"

    domu.offer(lun)
    host.set_back(max_queues=1)
    domu.load_front(max_queues=QUEUES)
    check("lowered between the offer of 2 and the connection", 2)
    for what, limit, want in (
        ("lowered before a second connection", 1, 1),
        ("raised before a second connection", 2, 2),
        ("0 before a second connection", 0, 1),
    ):
        domu.unbind_front()
        domu.wait_back("Closed", "InitWait")
        host.set_back(max_queues=limit)
        domu.load_front(max_queues=QUEUES)
        check(what, want)
    domu.detach()
    domu.load_front(max_queues=QUEUES)
    domu.offer(lun)
    check("0 before the offer", 1)
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    check_data(domu)


@pytest.mark.stack(domu_vcpus=2)
def test_more_queues_than_offered_are_refused(host: RigHost, lun: RigLun) -> None:
    """The parameter is raised meanwhile."""
    domu = host.create(front=None, back_parameters={"max_queues": 1})
    domu.offer(lun)
    host.set_back(max_queues=2)
    front = FrontEndKeys(domu)
    keys = {f"queue-{n}/{key}": 1 + n for n in (0, 1) for key in ("event-channel", "ring-ref")}
    front.publish({"multi-queue-num-queues": 2, **keys})
    refusal = front.refusal()
    assert "guest requested 2 queues, exceeding the maximum of 1" in refusal, (
        f"the back end takes more queues than it has offered: {refusal}"
    )
