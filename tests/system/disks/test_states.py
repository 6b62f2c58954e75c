"""A back end whose state in xenstore goes any way: its disk can be taken away, its name used again.

Whoever may write a back end's directory (a toolstack, a back end that starts again) can have its
state go Closing, and on; xen-devel had "Closing, Connected" end a guest in March 2021.
"""

from __future__ import annotations

import itertools

import pytest
from told_answers import Command

from emu.errors import EmuError
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun
from emu.xen.xenstore import XENBUS_STATES

STATES = {number: name for number, name in XENBUS_STATES.items() if number}
"""All but Unknown, which is none of a device's own."""
ENDED = ((5, 4), (6, 4), (5, 2), (6, 2), (6, 1), (5, 5), (6, 6), (6, 5), (5, 6))
ENOUGH = 3
"""Pairs that are wrong tell as much as all of them: each takes xl some 15 s."""
READ = "while dd if=/dev/xvda of=/dev/null bs=4k iflag=direct; do :; done"


def pairs() -> list[object]:
    rest = tuple(pair for pair in itertools.product(STATES, repeat=2) if pair not in ENDED)
    return [
        pytest.param(ENDED, id="ended"),
        pytest.param(rest, id="others", marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ]


def taken_away(domu: RigDomu, reading: Command) -> str:
    """Take the disk away, by force if that is needed; what is wrong, or ""."""
    plain = ""
    try:
        domu.detach()
    except EmuError as error:
        plain = f"`xl block-detach` gives up ({error}); "
        try:
            domu.force_detach()
        except EmuError as forced:
            plain += f"with --force, too ({forced}); "
    try:
        domu.wait_gone()
    except EmuError as error:
        return f"{plain}by force: {error}"
    if reading.wait() is None:
        return f"{plain}a reader of the disk that is gone has not ended"
    return plain


def go_through(domu: RigDomu, states: tuple[int, int], *, settled: bool) -> None:
    """Write `states` to the back end's key; with `settled`, the second when both ends are Closed.

    Without, the back end's own Closed may come after it.
    """
    key = f"{domu.domain.back_path()}/state"
    for state in states:
        domu.host.xen.write({key: state})
        if settled and state in (5, 6):
            domu.wait_front("Closed")
            domu.wait_back("Closed")
            settled = False


@pytest.mark.parametrize("which", pairs())
def test_disk_can_be_taken_away_from_any_states(
    host: RigHost, lun: RigLun, which: tuple[tuple[int, int], ...]
) -> None:
    """With stock drivers "Closing, Connected" ends the guest's xenbus thread at a BUG (6.1), and
    any later state leaves a front end that is Closed for good: `xl block-detach` gives up. With the
    series the disk goes, and its name is free."""
    domu = host.create(ring_pages=4)
    wrong: dict[str, str] = {}
    order = [(pair, settled) for pair in which for settled in (False, True)]
    for pair, settled in order:
        name = " and later ".join(STATES[state] for state in pair)
        name = name if settled else name.replace(" and later ", ", ")
        domu.attach(lun, FIRST_DISK)
        reading = Command(domu, READ)
        go_through(domu, pair, settled=settled)
        if words := taken_away(domu, reading):
            wrong[name] = words
        print(f"{name}: {words or 'taken away'}", flush=True)
        if len(wrong) == ENOUGH:
            break
    domu.attach(lun, FIRST_DISK)
    assert domu.fill() == domu.sum(), "what is read at last is not what was written"
    assert not wrong, "\n".join(f"{name}: {words}" for name, words in wrong.items())
