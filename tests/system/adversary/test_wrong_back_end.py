"""A back end that offers nonsense: the front end says so once, keeps its guest alive, goes on.

dom0 plays the back end in xenstore, with no driver loaded: whatever it is told there a front end
has to bear. A disk of no sectors is made without any I/O, which nobody would answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from ends import CONNECTED, DISK, INIT_WAIT, INITIALISED, SETTLES_WITHIN, Ends

from emu.xen.config import virtual_device
from emu.xen.drivers import BACK, unload
from emu.xen.xenstore import XENBUS_STATES

Keys = Mapping[str, str | int]
NUMBER = virtual_device(DISK)
CLOSING, CLOSED = "Closing", "Closed"
_NUMBERS = {name: number for number, name in XENBUS_STATES.items()}
MOST = 16
SMALL: Keys = {"sectors": 0, "sector-size": 512, "info": 0}

MAKE = """
set -e
front=/local/domain/$1/device/vbd/$2 back=/local/domain/0/backend/vbd/$1/$2
xenstore-write $back/frontend $front $back/frontend-id $1 $back/state 1 $back/online 1
xenstore-chmod $back n0 r$1
for key in frontend frontend-id state online; do xenstore-chmod $back/$key n0 r$1; done
xenstore-write $front/backend-id 0 $front/virtual-device $2 $front/device-type disk
xenstore-write $front/backend $back
xenstore-write $front/state 1
xenstore-chmod -r $front n$1 r0
"""
REMOVE = """
front=/local/domain/$1/device/vbd/$2 back=/local/domain/0/backend/vbd/$1/$2
xenstore-rm $front; xenstore-rm $back
true
"""


@dataclass
class PlayedBack:
    """A back end that exists in xenstore only."""

    ends: Ends
    heard: int = field(default=0)

    @property
    def _words(self) -> list[str]:
        return [str(self.ends.stack.domain.domid), str(NUMBER)]

    def make(self) -> None:
        self.ends.listen("front")
        self.ends.channel("back").run(["sh", "-c", MAKE, "sh", *self._words], timeout=30)

    def remove(self) -> None:
        self.ends.channel("back").run(["sh", "-c", REMOVE, "sh", *self._words], timeout=30)
        gone = f"until [ ! -e /sys/bus/xen/devices/vbd-{NUMBER} ]; do usleep 20000; done"
        self.ends.channel("front").run(gone, timeout=30)

    def tell(self, state: str, keys: Keys | None = None) -> None:
        """Write keys, which the front end may read, then the state."""
        root = self.ends.stack.domain.back_path(DISK)
        dom0 = self.ends.channel("back")
        pairs = [
            str(word) for key, value in (keys or {}).items() for word in (f"{root}/{key}", value)
        ]
        if pairs:
            dom0.run(["xenstore-write", "--", *pairs], timeout=20)
        dom0.run(["xenstore-chmod", "-r", root, "n0", f"r{self._words[0]}"], timeout=20)
        dom0.run(["xenstore-write", f"{root}/state", str(_NUMBERS.get(state, state))], timeout=20)

    def front(self, *states: str) -> str:
        """Wait until the front end stands at one of `states`; which."""
        until = time.monotonic() + SETTLES_WITHIN
        while (now := self.ends.stack.domain.front_tree(DISK).state()) not in states:
            if time.monotonic() > until:
                return f"{now} after {SETTLES_WITHIN:.0f} s"
            time.sleep(0.05)
        return now

    def errors(self) -> list[str]:
        """What the domU's kernel reported of the disk as an error."""
        return self.ends.said("front", f"vbd vbd-{NUMBER}: ")

    def end(self) -> None:
        """Close as a back end does, so that the front end lets go."""
        self.tell(CLOSING)
        self.front(CLOSED)
        self.tell(CLOSED)
        self.remove()


def offers() -> dict[str, tuple[Keys, int]]:
    """What is offered before a ring is made, and the pages of the ring that must come of it."""
    cases: dict[str, tuple[Keys, int]] = {}
    for key in ("max-ring-page-order", "max-ring-pages", "multi-queue-max-queues"):
        for value in ("-1", "0", str(2**31), "four", ""):
            cases[f"{key} {value!r}"] = {key: value}, 1
    # More than anybody has, but a number of pages: the front end takes its own limit.
    cases[f"max-ring-pages {str(2**31)!r}"] = {"max-ring-pages": 2**31}, MOST
    return cases


@pytest.fixture
def played(ends: Ends) -> PlayedBack:
    unload(ends.channel("back"), BACK)
    ends.load("front", max_ring_pages=MOST)
    return PlayedBack(ends)


def comes_back(ends: Ends) -> None:
    """The real back end connects on the same device."""
    ends.load("back")
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == MOST
    assert ends.fill_disk() == ends.sum_of_disk()
    ends.stack.domain.detach(DISK)


def test_offers_of_nonsense(ends: Ends, played: PlayedBack) -> None:
    before = ends.stack.host.grants().of(ends.stack.domain.domid).refs
    wrong: dict[str, str] = {}
    for name, (keys, pages) in offers().items():
        played.make()
        played.tell(INIT_WAIT, keys)
        state = played.front(INITIALISED, CLOSED)
        tree = ends.stack.domain.front_tree(DISK)
        asked = 1 << (tree.integer("ring-page-order") or 0)
        if state != INITIALISED:
            wrong[name] = f"the front end stands at {state}: {played.errors()}"
        elif asked != pages or tree.integer("multi-queue-num-queues") not in (None, 1):
            wrong[name] = f"the front end made a ring of {asked} pages: {dict(tree.values)}"
        played.end()
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    comes_back(ends)
    assert ends.stack.host.grants().of(ends.stack.domain.domid).refs == before


CONNECTS: dict[str, tuple[Keys, str]] = {
    "no sectors": ({"sector-size": 512, "info": 0}, "reading backend fields"),
    "sectors in words": ({**SMALL, "sectors": "many"}, "reading backend fields"),
    "no sector-size": ({"sectors": 0, "info": 0}, "reading backend fields"),
    "sector-size in words": ({**SMALL, "sector-size": "large"}, "reading backend fields"),
    "no info": ({"sectors": 0, "sector-size": 512}, "reading backend fields"),
    "sector-size 0": ({**SMALL, "sector-size": 0}, "sectors of 0 bytes"),
    "sector-size 3": ({**SMALL, "sector-size": 3}, "sectors of 3 bytes"),
    "sector-size 2^31": ({**SMALL, "sector-size": 2**31}, "sectors of 2147483648 bytes"),
    "sector-size 2^32 + 512": (
        {**SMALL, "sector-size": 2**32 + 512},
        "sectors of 4294967808 bytes",
    ),
    "indirect segments 2^31": ({**SMALL, "feature-max-indirect-segments": 2**31}, ""),
    "indirect segments -1": ({**SMALL, "feature-max-indirect-segments": -1}, ""),
    "discard of nonsense": (
        {**SMALL, "feature-discard": 1, "discard-granularity": 3, "discard-alignment": 2**31},
        "",
    ),
    "persistent in words": ({**SMALL, "feature-persistent": "yes"}, ""),
}


def test_disks_of_nonsense(ends: Ends, played: PlayedBack) -> None:
    """What is told when a ring was made: a disk, or one line and no disk."""
    wrong: dict[str, str] = {}
    for name, (keys, word) in CONNECTS.items():
        played.make()
        played.tell(INIT_WAIT)
        assert played.front(INITIALISED) == INITIALISED, name
        played.tell(CONNECTED, keys)
        if word:
            deadline = time.monotonic() + 5
            while not played.errors() and time.monotonic() < deadline:
                time.sleep(0.05)
            told = played.errors()
            if len(told) != 1 or not re.search(word, told[0]):
                wrong[name] = f"told {told}, not one line of {word!r}"
        else:
            state = played.front(CONNECTED)
            if state != CONNECTED or played.errors():
                wrong[name] = f"{state}, {played.errors()}"
        played.end()
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    comes_back(ends)


JUMPS = {
    "Connected at once": [CONNECTED],
    "Closing at once": [CLOSING, CLOSED],
    "Closed at once": [CLOSED],
    "InitWait twice, then Closed": [INIT_WAIT, INIT_WAIT, CLOSED],
    "a state that is none": [INIT_WAIT, "99", CLOSING, CLOSED],
    "back to InitWait": [INIT_WAIT, CONNECTED, CONNECTED, INIT_WAIT],
}


def test_states_jumped_over(ends: Ends, played: PlayedBack) -> None:
    host, domid = ends.stack.host, ends.stack.domain.domid
    before = host.grants().of(domid).refs
    wrong: dict[str, str] = {}
    for name, states in JUMPS.items():
        played.make()
        for state in states:
            played.tell(state, SMALL)
            time.sleep(0.3)
        told = played.errors()
        played.end()
        if len(told) > 1:
            wrong[name] = f"{len(told)} lines: {told}"
        elif left := host.grants().of(domid).refs - before:
            wrong[name] = f"references {sorted(left)} are still mapped"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    comes_back(ends)
    assert host.grants().of(domid).refs == before
