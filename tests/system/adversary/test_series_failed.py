"""The series: a connection that fails costs dom0 one line, and the next one works."""

from __future__ import annotations

import pytest
from driver_checks import check_pages, only

from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.keys import FrontEndKeys

GOOD = {"event-channel": 1, "ring-ref": 8}
TWO_QUEUES = {
    "multi-queue-num-queues": 2,
    "queue-0/event-channel": 1,
    "queue-0/ring-ref": 8,
    "queue-1/event-channel": 2,
}
BAD = [
    pytest.param({"ring-ref": 8}, "event-channel", id="no event channel"),
    pytest.param({"event-channel": 1}, "ring-ref", id="no reference"),
    pytest.param({**GOOD, "ring-ref": 4000000000}, "mapping in shared page", id="no grant"),
    pytest.param({**GOOD, "ring-page-order": 2}, "ring-ref0", id="no reference of a larger ring"),
    pytest.param({**GOOD, "ring-page-order": 40}, "order 40", id="absurd order"),
    pytest.param({**GOOD, "ring-page-order": 4294967295}, "4294967295", id="largest order"),
    pytest.param({**GOOD, "ring-page-order": -1}, "ring-page-order", id="negative order"),
    pytest.param({**GOOD, "ring-page-order": "many"}, "ring-page-order", id="order as text"),
    pytest.param({**GOOD, "ring-page-order": 9 * 10**20}, "ring-page-order", id="overlong order"),
    pytest.param({**GOOD, "ring-ref": "8x"}, "ring-ref", id="reference no number"),
    pytest.param({**GOOD, "multi-queue-num-queues": 0}, "0 queues", id="no queues"),
    pytest.param({**GOOD, "multi-queue-num-queues": 4294967295}, "queues", id="absurd queues"),
    pytest.param({**GOOD, "multi-queue-num-queues": "two"}, "num-queues", id="queues as text"),
    pytest.param({**GOOD, "protocol": "x86_16-abi"}, "x86_16-abi", id="unknown protocol"),
    pytest.param(TWO_QUEUES, "queue-1/ring-ref", id="second queue lacks a key"),
]


@pytest.mark.parametrize(("keys", "word"), BAD)
def test_failure_is_one_line(
    host: RigHost, lun: RigLun, keys: dict[str, str | int], word: str
) -> None:
    # The fixture fails the test for a WARNING on a console.
    domu, front = refusable(host, lun, max_queues=4)
    host.log.mark()
    front.publish(keys)
    refusal = front.refusal()
    errors = domu.errors()
    assert len(errors) == 1, f"one failure, {len(errors)} errors: {errors}"
    assert word in refusal, f"refused for something else: {refusal}"


def test_first_queue_of_two_cannot_be_mapped(host: RigHost, lun: RigLun) -> None:
    domu, front = refusable(host, lun, max_queues=4)
    front.publish({**TWO_QUEUES, "queue-1/ring-ref": 9, "queue-0/ring-ref": 4000000000})
    refusal = front.refusal()
    assert "mapping in shared page" in refusal, f"refused for something else: {refusal}"
    only(domu.errors(), "tell of one connection that failed")


def test_connection_fails_again_and_again(host: RigHost, lun: RigLun) -> None:
    domu, front = refusable(host, lun)
    for _ in range(5):
        front.publish({**GOOD, "ring-ref": 4000000000})
        front.refusal()
        front.reset()
    errors = domu.errors()
    assert len(errors) == 5, f"5 connections failed, which dom0 tells in {len(errors)}: {errors}"
    front.remove(*GOOD)
    domu.load_front(max_ring_pages=4)
    check_pages(domu.wait_connected(lun), 4)
    state = domu.domain.front_tree().state()
    assert state == "Connected", f"after 5 failures a good front end is in {state}"


def refusable(host: RigHost, lun: RigLun, **back_parameters: int) -> tuple[RigDomu, FrontEndKeys]:
    """A domU with a disk that no driver has, and the keys of its front end."""
    domu = host.create(front=None, back_parameters=back_parameters)
    domu.offer(lun)
    return domu, FrontEndKeys(domu)
