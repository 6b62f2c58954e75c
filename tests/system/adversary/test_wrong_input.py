"""A front end that publishes nonsense: dom0 logs one line, leaks nothing, goes on.

dom0 plays the front end in xenstore. Each wrong set of keys is a connection of its own on the
same device; after all of them the real front end connects, and everything is given back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from driver_checks import (
    check_data,
    check_holds,
    check_pages,
    check_quiet,
    check_unmapped,
    only,
    shown,
)

from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.keys import FrontEndKeys

Keys = Mapping[str, str | int]

NEVER_GRANTED = 4000000
GOOD: Keys = {"event-channel": 1, "ring-ref": NEVER_GRANTED}
FOUR = {f"ring-ref{page}": NEVER_GRANTED + page for page in range(4)}
LARGE: Keys = {"event-channel": 1, "ring-page-order": 2, "num-ring-pages": 4, **FOUR}


def without(keys: Keys, *gone: str) -> Keys:
    return {key: value for key, value in keys.items() if key not in gone}


def pages(value: str) -> Keys:
    return {**without(LARGE, "ring-page-order"), "num-ring-pages": value}


def order(value: str) -> Keys:
    return {**without(LARGE, "num-ring-pages"), "ring-page-order": value}


WRONG: dict[str, tuple[Keys, str]] = {
    "num-ring-pages 0": (pages("0"), "requested 0 ring pages"),
    "num-ring-pages -1": (pages("-1"), "reading .*/num-ring-pages"),
    "num-ring-pages 3": (pages("3"), "requested 3 ring pages"),
    "num-ring-pages 32": (pages("32"), "requested 32 ring pages"),
    "num-ring-pages 2^31": (pages(str(2**31)), "requested 2147483648 ring pages"),
    "num-ring-pages 2^32 + 4": (pages(str(2**32 + 4)), "reading .*/num-ring-pages"),
    "num-ring-pages as text": (pages("four"), "reading .*/num-ring-pages"),
    "num-ring-pages empty": (pages(""), "reading .*/num-ring-pages"),
    "ring-page-order -1": (order("-1"), "reading .*/ring-page-order"),
    "ring-page-order 5": (order("5"), "order 5 exceeds max 4"),
    "ring-page-order 2^31": (order(str(2**31)), "order 2147483648 exceeds max 4"),
    "ring-page-order as text": (order("two"), "reading .*/ring-page-order"),
    "ring-page-order empty": (order(""), "reading .*/ring-page-order"),
    "both, contradicting": (
        {**LARGE, "ring-page-order": 1},
        "order 1 and num-ring-pages 4 disagree",
    ),
    "ring-ref2 missing": (without(LARGE, "ring-ref2"), "reading .*/ring-ref2"),
    "ring-ref3 as text": ({**LARGE, "ring-ref3": "x"}, "reading .*/ring-ref3"),
    "never granted": (LARGE, "mapping in shared page"),
    "one of many never granted": (
        {**LARGE, "ring-ref0": "{granted}", "ring-ref1": "{granted}"},
        "mapping in shared page",
    ),
    "the same reference in every key": (
        {**LARGE, **dict.fromkeys(FOUR, "{granted}")},
        "mapping ring-ref|event channel|requests",
    ),
    "a page that is no ring": ({**GOOD, "ring-ref": "{granted}"}, "mapping ring-ref|requests"),
    "event channel of another": (
        {**GOOD, "ring-ref": "{granted}", "event-channel": 2**31},
        "mapping ring-ref|requests",
    ),
}


def refused(front: FrontEndKeys, keys: Keys, state: str = "Initialised") -> tuple[str, list[str]]:
    """What the back end reports of one connection: its error key, and dom0's lines of it."""
    domu = front.domu
    domu.host.log.mark()
    front.publish(keys, state)
    error = front.refusal()
    lines = domu.errors()
    front.remove(*keys)
    front.reset()
    return error, lines


def connects(domu: RigDomu, pages: int = 4) -> None:
    """The real front end connects and moves data."""
    domu.load_front(max_ring_pages=pages)
    check_pages(domu.wait_connected(), pages)
    check_data(domu)


def test_each_wrong_set_is_one_line(host: RigHost, lun: RigLun) -> None:
    domu = host.create(front=None)
    before = domu.mapped_refs()
    domu.offer(lun)
    front = FrontEndKeys(domu)
    granted = host.xen.read(f"/local/domain/{domu.domain.domid}/device/console/1/ring-ref")
    assert granted, "the domU has no second console, whose page is granted"
    wrong: dict[str, object] = {}
    for name, (keys, word) in WRONG.items():
        keys = {key: str(value).format(granted=granted) for key, value in keys.items()}
        error, lines = refused(front, keys)
        if not re.search(word, error):
            wrong[name] = f"refused with {error!r}, not {word!r}"
        elif len(lines) != 1:
            wrong[name] = f"{len(lines)} lines in dom0: {lines}"
        elif extra := domu.mapped_refs() - before:
            wrong[name] = f"dom0 still maps references {sorted(extra)}"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    connects(domu)
    domu.detach()
    check_unmapped(domu, before)


def test_front_end_skips_states(host: RigHost, lun: RigLun) -> None:
    """From Initialising to what comes after the keys, without any."""
    domu = host.create(front=None)
    before = domu.mapped_refs()
    domu.offer(lun)
    front = FrontEndKeys(domu)
    for state in ("Connected", "Reconfiguring", "Reconfigured"):
        error, lines = refused(front, {}, state)
        only(lines, f"tell of a front end that goes to {state} at once")
        word = "event-channel" if state == "Connected" else "saw state"
        assert word in error, f"a front end that goes to {state} at once is refused with {error!r}"
    connects(domu)
    domu.detach()
    check_unmapped(domu, before)


@pytest.mark.parametrize("again", ["Initialised", "Connected"])
def test_keys_change_after_connecting(host: RigHost, lun: RigLun, again: str) -> None:
    """A connection keeps the ring it was made with, whatever its keys are later."""
    domu = host.create(front=None)
    domu.offer(lun)
    before = domu.mapped_refs()
    connects(domu)
    data = domu.sum()
    host.log.mark()
    front = FrontEndKeys(domu)
    front.publish({**LARGE, "ring-page-order": 4, "num-ring-pages": 16, "event-channel": 99}, again)
    state = domu.domain.back_tree().state()
    assert state == "Connected", f"the back end is in {state} after keys changed under it"
    check_holds(domu, data)
    pages = [queue.pages for queue in shown(domu)]
    assert pages == [4, 4], (
        f"front and back end show {pages} pages of a ring of 4, whose keys were changed to 16"
    )
    check_quiet(domu)
    front.set_state("Connected")
    domu.detach()
    check_unmapped(domu, before)
