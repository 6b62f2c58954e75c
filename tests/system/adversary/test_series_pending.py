"""The series: a front end that closes, and comes back while dom0 still does its requests.

Those of a raw front end (front-ends/raw-requests.patch), for which its driver does not wait.
"""

from __future__ import annotations

import pytest
from back_ends import front_end
from driver_checks import only
from raw_cases import RAW
from raw_requests import WRITE, RawFrontEnd, direct

from emu.deadline import Deadline, poll
from emu.rig import RigHost, RigLun

TWO = {"max_queues": 2}
REFUSED_WITHIN = 15.0
BIND = "/sys/bus/xen/drivers/vbd/bind"


@pytest.mark.stack(domu_vcpus=2)
def test_front_end_that_comes_back_too_soon_is_refused(host: RigHost, lun: RigLun) -> None:
    """One of its two queues has a request at the LUN. When that is done it may come back."""
    domu = host.create(
        disk=lun, front=front_end(host, RAW), front_parameters=TWO, back_parameters=TWO
    )
    front = RawFrontEnd(domu)
    with lun.held():
        front.send(direct(WRITE, 4096, front.segment(0)))
        lun.await_outstanding(1)
        domu.unbind_front()
        domu.run(f"echo {domu.device('front')} > {BIND}")
        until = Deadline("the back end to refuse the front end", REFUSED_WITHIN)
        errors = poll(domu.errors, until)
        said = only(errors, "refuse a front end that comes back too soon")
        assert "pending I/O" in said, f"it is not refused for requests that are not done: {said}"
    lun.await_outstanding(0)
    domu.unbind_front()
    domu.run(f"echo {domu.device('front')} > {BIND}")
    ring = domu.wait_connected(lun)
    assert ring.connected, "the front end can't come back when its requests are done"
    written = domu.fill()
    assert domu.sum() == written, "a disk that was connected again does not hold what was written"
