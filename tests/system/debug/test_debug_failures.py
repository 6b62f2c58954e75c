"""The series when memory runs out while an end sets up: one line, nothing lost, and again.

One allocation under the module's code fails at each attempt, the first, the second and so
on, in the thread that does the set-up (xenwatch), until an attempt needs no more of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import debugging
import pytest
from test_debug_series import MODULE, nothing_left, round_trip

from emu.channel.channel import CommandFailed
from emu.deadline import Deadline, poll
from emu.images.modules import End
from emu.rig import FIRST_DISK, RigDomu, RigHost
from emu.rig.disks import STATE_WITHIN

pytestmark = [
    pytest.mark.debug,
    pytest.mark.timeout(3600),
    pytest.mark.stack(kernel="lab-debug", domu_memory=256),
]

ONE_BY_ONE = 48
"""So many allocations are failed one after the other; then comes the loop over the requests."""
MOST = 5000
UNREPORTED = ("__xenbus_switch_state", "xenbus_scanf")
"""When these find no memory the state stays as it was, unreported: xenbus's own fault
(Linux 6.1 and 6.12), which no driver can mend."""


def attempts() -> Iterator[int]:
    """Which allocation fails: each of the first, then ever fewer."""
    nth = 1
    while nth < MOST:
        yield nth
        nth += 1 if nth < ONE_BY_ONE else nth // 8
    pytest.fail(f"set-up takes more than {MOST} allocations")


def attach(domu: RigDomu) -> bool:
    """Try to attach; whether the disk got connected."""
    try:
        domu.domain.attach(domu.host.lun.lun, FIRST_DISK)
    except CommandFailed:
        return False
    states = poll(
        lambda: {domu.domain.front_tree().state(), domu.domain.back_tree().state()},
        Deadline("the disk", STATE_WITHIN),
        until=lambda now: now == {"Connected"} or now & {"Closing", "Closed", "absent"},
        pause=0.1,
    )
    return states == {"Connected"}


def clear_away(domu: RigDomu) -> None:
    """Take the disk away, in whatever state it is."""
    words = ["xl", "block-detach", str(domu.domain.domid), FIRST_DISK]
    domu.host.dom0.run(words, timeout=60, check=False)
    if domu.domain.back_tree().state() != "absent":
        with contextlib.suppress(CommandFailed):
            domu.force_detach()


def failed_in(domu: RigDomu, end: End) -> tuple[str, ...]:
    """Where the allocation failed: the module's function, and what xenbus did for it.

    One that was asked for without a warning logs nothing: kmemleak's notes of another.
    """
    calls: list[str] = []
    for line in domu.log_of(end).lines():
        found = re.search(r"\]  (\w[\w.]*)\+0x\w+/0x\w+( \[\w+\])?$", line)
        if found and found[2]:
            return (found[1], *reversed(calls))
        if found and found[1].lstrip("_").startswith(("xenbus_", "xs_")):
            calls.append(found[1])
    return ("silence",)


def errors_of(domu: RigDomu, end: End) -> list[str]:
    """The lines about the disk in an end's log, without the bus's own when a probe fails."""
    return [line for line in domu.errors(end) if "xenbus_dev_probe on" not in line]


@pytest.mark.parametrize("end", ["back", "front"])
def test_allocation_fails(host: RigHost, end: End) -> None:
    domu = host.create(ring_pages=1)
    channel = domu.channel_of(end)
    round_trip(domu, 1)
    xenwatch = debugging.thread(channel, "xenwatch")
    wrong: list[str] = []
    with nothing_left(domu, ("back", "front")), debugging.failing(channel, MODULE[end]):
        for nth in attempts():
            host.log.mark()
            domu.log.mark()
            debugging.fail_nth(channel, xenwatch, nth)
            connected = attach(domu)
            failed = debugging.has_failed(channel, xenwatch)
            debugging.fail_nth(channel, xenwatch, 0)
            place = failed_in(domu, end) if failed else ()
            errors = errors_of(domu, end)
            print(f"{end} {nth}: {' > '.join(place)}: connected {connected}, {errors}", flush=True)
            clear_away(domu)
            if not failed:
                assert connected
                break
            unreported = not errors and not connected and not set(UNREPORTED) <= set(place)
            if len(errors) > 1 or unreported:
                wrong.append(f"{nth} in {place}: connected {connected}, {errors}")
            round_trip(domu, 1)
    assert wrong == []
