"""The series: a connection that fails costs dom0 one line, and the next one works."""

from __future__ import annotations

import pytest
from ends import CLOSING, DISK, INITIALISED, Ends

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
    pytest.param({**GOOD, "ring-page-order": "many"}, "ring-page-order", id="order in words"),
    pytest.param({**GOOD, "ring-page-order": 9 * 10**20}, "ring-page-order", id="overlong order"),
    pytest.param({**GOOD, "ring-ref": "8x"}, "ring-ref", id="reference no number"),
    pytest.param({**GOOD, "multi-queue-num-queues": 0}, "0 queues", id="no queues"),
    pytest.param({**GOOD, "multi-queue-num-queues": 4294967295}, "queues", id="absurd queues"),
    pytest.param({**GOOD, "protocol": "x86_16-abi"}, "x86_16-abi", id="unknown protocol"),
    pytest.param(TWO_QUEUES, "queue-1/ring-ref", id="second queue lacks a key"),
]


@pytest.mark.parametrize(("keys", "word"), BAD)
def test_one_line(ends: Ends, keys: dict[str, str | int], word: str) -> None:
    # The fixture fails the test for a WARNING on a console.
    ends.load("back", max_queues=4)
    ends.attach()
    ends.listen()
    ends.publish(keys)
    refusal = ends.refusal()
    assert len(ends.errors()) == 1, f"one failure, {len(ends.errors())} errors: {ends.errors()}"
    assert word in refusal, f"refused for something else: {refusal}"


def test_second_queue_that_cannot_be_mapped(ends: Ends) -> None:
    ends.load("back", max_queues=4)
    ends.attach()
    ends.publish({**TWO_QUEUES, "queue-1/ring-ref": 9, "queue-0/ring-ref": 4000000000})
    assert "mapping in shared page" in ends.refusal()
    assert len(ends.errors()) == 1, ends.errors()


def test_again_and_again(ends: Ends) -> None:
    ends.load("back")
    ends.attach()
    for _ in range(5):
        ends.publish({**GOOD, "ring-ref": 4000000000})
        ends.wait_back(CLOSING)
        ends.publish({}, "Closed")
        ends.wait_back("Closed")
        ends.publish({}, "Initialising")
        ends.wait_back("InitWait")
    assert len(ends.errors()) == 5, ends.errors()
    for key in GOOD:
        root = ends.stack.domain.front_path()
        ends.channel("back").run(["xenstore-rm", f"{root}/{key}"], timeout=20)
    ends.load("front", max_ring_page_order=2)
    assert ends.stack.domain.wait_connected(DISK).pages == 4
    assert INITIALISED not in ends.stack.domain.front_tree().state()
