"""The series when memory runs out while an end sets up: one line, nothing lost, and again.

One allocation under the module's code fails at each attempt, the first, the second and so
on, in the thread that does the set-up (xenwatch), until an attempt needs no more of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import debugging
import pytest
from ends import CLOSING, CONNECTED, DISK, Ends
from test_debug_series import MODULE, nothing_left, round_trip

from emu.channel.channel import CommandFailed
from emu.images.modules import End
from emu.xen.config import virtual_device

pytestmark = [
    pytest.mark.debug,
    pytest.mark.timeout(3600),
    pytest.mark.stack(kernel="lab-debug", domu_memory=256),
]

ONE_BY_ONE = 48
"""So many allocations are failed one after the other; then comes the loop over the requests."""
MOST = 5000
UNSAID = ("__xenbus_switch_state", "xenbus_scanf")
"""When these find no memory the state stays as it was and nobody is told: xenbus's own fault
(Linux 6.1 and 6.12), which no driver can mend."""


def attempts() -> Iterator[int]:
    """Which allocation fails: each of the first, then ever fewer."""
    nth = 1
    while nth < MOST:
        yield nth
        nth += 1 if nth < ONE_BY_ONE else nth // 8
    pytest.fail(f"set-up takes more than {MOST} allocations")


def attach(ends: Ends) -> bool:
    """Try to attach; whether the disk got connected."""
    try:
        ends.stack.domain.attach(ends.stack.lun, DISK)
    except CommandFailed:
        return False
    until = time.monotonic() + 20
    while time.monotonic() < until:
        states = {ends.stack.domain.front_tree().state(), ends.stack.domain.back_tree().state()}
        if states == {CONNECTED}:
            return True
        if states & {CLOSING, "Closed", "absent"}:
            return False
        time.sleep(0.1)
    return False


def clear_away(ends: Ends) -> None:
    """Take the disk away, whatever became of it."""
    domid, number = ends.stack.domain.domid, virtual_device(DISK)
    ends.stack.host.dom0.run(["xl", "block-detach", str(domid), DISK], timeout=60, check=False)
    if ends.stack.domain.back_tree().state() != "absent":
        ends.stack.host.dom0.run(
            ["xl", "block-detach", "--force", str(domid), str(number)], timeout=60, check=False
        )


def failed_in(ends: Ends, end: End) -> tuple[str, ...]:
    """Where the allocation failed: the module's function, and what xenbus did for it.

    One that was asked for without a warning tells nothing: kmemleak's notes of another.
    """
    calls: list[str] = []
    for line in ends.said(end):
        found = re.search(r"\]  (\w[\w.]*)\+0x\w+/0x\w+( \[\w+\])?$", line)
        if found and found[2]:
            return (found[1], *reversed(calls))
        if found and found[1].lstrip("_").startswith(("xenbus_", "xs_")):
            calls.append(found[1])
    return ("silence",)


def said_of_it(ends: Ends, end: End) -> list[str]:
    """The lines about the disk in an end's log, without the bus's own when a probe fails."""
    name = f"vbd-{ends.stack.domain.domid}-" if end == "back" else "vbd-"
    lines = ends.said(end, f"vbd {name}{virtual_device(DISK)}: ")
    return [line for line in lines if "xenbus_dev_probe on" not in line]


@pytest.mark.parametrize("end", ["back", "front"])
def test_an_allocation_fails(ends: Ends, end: End) -> None:
    ends.load("back")
    ends.load("front", max_ring_page_order=0)
    channel = ends.channel(end)
    round_trip(ends, 1)
    xenwatch = debugging.thread(channel, "xenwatch")
    wrong: list[str] = []
    with nothing_left(ends, ("back", "front")), debugging.failing(channel, MODULE[end]):
        for nth in attempts():
            ends.listen()
            debugging.fail_nth(channel, xenwatch, nth)
            connected = attach(ends)
            failed = debugging.has_failed(channel, xenwatch)
            debugging.fail_nth(channel, xenwatch, 0)
            place = failed_in(ends, end) if failed else ()
            errors = said_of_it(ends, end)
            print(f"{end} {nth}: {' > '.join(place)}: connected {connected}, {errors}", flush=True)
            clear_away(ends)
            if not failed:
                assert connected
                break
            unsaid = not errors and not connected and not set(UNSAID) <= set(place)
            if len(errors) > 1 or unsaid:
                wrong.append(f"{nth} in {place}: connected {connected}, {errors}")
            round_trip(ends, 1)
    assert wrong == []
