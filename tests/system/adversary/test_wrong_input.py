"""A front end that publishes nonsense: dom0 says so in one line, leaks nothing, goes on.

dom0 plays the front end in xenstore. Each wrong set of keys is a connection of its own on the
same device; after all of them the real front end connects, and everything is given back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from ends import CONNECTED, DISK, INIT_WAIT, INITIALISED, Ends

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
    "num-ring-pages in words": (pages("four"), "reading .*/num-ring-pages"),
    "num-ring-pages empty": (pages(""), "reading .*/num-ring-pages"),
    "ring-page-order -1": (order("-1"), "reading .*/ring-page-order"),
    "ring-page-order 5": (order("5"), "order 5 exceeds max 4"),
    "ring-page-order 2^31": (order(str(2**31)), "order 2147483648 exceeds max 4"),
    "ring-page-order in words": (order("two"), "reading .*/ring-page-order"),
    "ring-page-order empty": (order(""), "reading .*/ring-page-order"),
    "both, contradicting": (
        {**LARGE, "ring-page-order": 1},
        "order 1 and num-ring-pages 4 disagree",
    ),
    "ring-ref2 missing": (without(LARGE, "ring-ref2"), "reading .*/ring-ref2"),
    "ring-ref3 in words": ({**LARGE, "ring-ref3": "x"}, "reading .*/ring-ref3"),
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


def refused(ends: Ends, keys: Keys, state: str = INITIALISED) -> tuple[str, list[str]]:
    """What the back end says of one connection: its error key, and dom0's lines of it."""
    ends.listen("back")
    ends.publish(keys, state)
    words = ends.refusal()
    told = ends.errors()
    ends.publish({}, "Closed")
    ends.wait_back("Closed")
    if keys:
        root = ends.stack.domain.front_path(DISK)
        ends.channel("back").run(["xenstore-rm", *(f"{root}/{key}" for key in keys)], timeout=20)
    ends.publish({}, "Initialising")
    ends.wait_back(INIT_WAIT)
    return words, told


def connects(ends: Ends, pages: int = 4) -> None:
    """The real front end connects, moves data, and all is given back when it goes."""
    ends.load("front", max_ring_pages=pages)
    assert ends.stack.domain.wait_connected(DISK).pages == pages
    assert ends.fill_disk() == ends.sum_of_disk()


def mapped(ends: Ends) -> frozenset[int]:
    return ends.stack.host.grants().of(ends.stack.domain.domid).refs


def test_each_is_one_line(ends: Ends) -> None:
    ends.load("back")
    before = mapped(ends)
    ends.attach()
    console = f"/local/domain/{ends.stack.domain.domid}/device/console/1/ring-ref"
    granted = ends.stack.host.read(console)
    assert granted
    wrong: dict[str, object] = {}
    for name, (keys, word) in WRONG.items():
        keys = {key: str(value).format(granted=granted) for key, value in keys.items()}
        words, told = refused(ends, keys)
        if not re.search(word, words):
            wrong[name] = f"refused with {words!r}, not {word!r}"
        elif len(told) != 1:
            wrong[name] = f"{len(told)} lines in dom0: {told}"
        elif extra := mapped(ends) - before:
            wrong[name] = f"dom0 still maps references {sorted(extra)}"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    connects(ends)
    ends.stack.domain.detach(DISK)
    assert mapped(ends) == before


def test_states_jumped_over(ends: Ends) -> None:
    """From Initialising to what comes after the keys, without any."""
    ends.load("back")
    before = mapped(ends)
    ends.attach()
    for state in (CONNECTED, "Reconfiguring", "Reconfigured"):
        words, told = refused(ends, {}, state)
        assert len(told) == 1, (state, told)
        assert ("event-channel" if state == CONNECTED else "saw state") in words, state
    connects(ends)
    ends.stack.domain.detach(DISK)
    assert mapped(ends) == before


@pytest.mark.parametrize("again", [INITIALISED, CONNECTED])
def test_keys_changed_after_connecting(ends: Ends, again: str) -> None:
    """A connection keeps the ring it was made with, whatever its keys say later."""
    ends.load("back")
    ends.attach()
    before = mapped(ends)
    connects(ends)
    data = ends.sum_of_disk()
    ends.listen()
    ends.publish({**LARGE, "ring-page-order": 4, "num-ring-pages": 16, "event-channel": 99}, again)
    assert ends.stack.domain.back_tree(DISK).state() == CONNECTED
    assert ends.sum_of_disk() == data
    views = ends.stack.domain.queues(DISK)
    assert views.front is not None
    assert views.back is not None
    assert [queue.pages for queue in (*views.front, *views.back)] == [4, 4]
    assert ends.errors() == []
    ends.publish({}, CONNECTED)
    ends.stack.domain.detach(DISK)
    assert mapped(ends) == before
