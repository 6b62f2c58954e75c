"""A back end that offers nonsense: the front end logs it once, keeps its guest alive, goes on.

dom0 plays the back end in xenstore, with no driver loaded: a front end has to bear whatever it
reads there. A disk of no sectors is made without any I/O, which would never be answered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import pytest
from driver_checks import check_data, check_pages, check_unmapped

from emu.deadline import Deadline, poll
from emu.errors import NotHeld
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun
from emu.xen.drivers import BACK, unload
from emu.xen.vdev import virtual_device
from emu.xen.xenstore import state_number

Keys = Mapping[str, str | int]
ERROR_WITHIN = 5.0
"""Seconds in which the front end has logged what it does not take."""
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


class PlayedBackEnd:
    """A back end that exists in xenstore only."""

    def __init__(self, domu: RigDomu) -> None:
        self.domu = domu
        self.xen = domu.host.xen

    @property
    def _words(self) -> list[str]:
        return [str(self.domu.domain.domid), str(virtual_device(FIRST_DISK))]

    def make(self) -> None:
        """Make both directories, as libxl does."""
        self.domu.log.mark()
        self.xen.dom0.run(["sh", "-c", MAKE, "sh", *self._words], timeout=30)

    def remove(self) -> None:
        """Remove both directories; returns when the domU has no device any more."""
        self.xen.dom0.run(["sh", "-c", REMOVE, "sh", *self._words], timeout=30)
        self.domu.wait_gone()

    def publish(self, state: str, keys: Keys | None = None) -> None:
        """Write keys, which the front end may read, then the state, by its name or number."""
        root = self.domu.domain.back_path()
        self.xen.write({f"{root}/{key}": value for key, value in (keys or {}).items()})
        domid = self.domu.domain.domid
        self.xen.dom0.run(["xenstore-chmod", "-r", root, "n0", f"r{domid}"], timeout=20)
        number = state if state.isdecimal() else state_number(state)
        self.xen.write({f"{root}/state": number})

    def front(self, *states: str) -> str:
        """Wait until the front end is in one of `states`; which, or what it is in instead."""
        try:
            return self.domu.wait_front(*states)
        except NotHeld as error:
            return error.message

    def errors(self) -> list[str]:
        """What the domU's kernel logged of the disk as an error."""
        return self.domu.errors("front")

    def end(self) -> None:
        """Close as a back end does, so that the front end lets go."""
        self.publish("Closing")
        self.front("Closed")
        self.publish("Closed")
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
def played(host: RigHost) -> PlayedBackEnd:
    """A back end by hand in a host whose dom0 has no driver for one."""
    domu = host.create(front_parameters={"max_ring_pages": MOST})
    unload(host.dom0, BACK)
    return PlayedBackEnd(domu)


def comes_back(domu: RigDomu, lun: RigLun) -> None:
    """The real back end connects on the same device."""
    domu.host.load_back()
    check_pages(domu.attach(lun), MOST)
    check_data(domu)
    domu.detach()


def test_offers_are_nonsense(lun: RigLun, played: PlayedBackEnd) -> None:
    domu = played.domu
    before = domu.mapped_refs()
    wrong: dict[str, str] = {}
    for name, (keys, pages) in offers().items():
        played.make()
        played.publish("InitWait", keys)
        state = played.front("Initialised", "Closed")
        tree = domu.domain.front_tree()
        asked = 1 << (tree.integer("ring-page-order") or 0)
        if state != "Initialised":
            wrong[name] = f"front end {state}: {played.errors()}"
        elif asked != pages or tree.integer("multi-queue-num-queues") not in (None, 1):
            wrong[name] = f"the front end made a ring of {asked} pages: {dict(tree.values)}"
        elif len(errors := played.errors()) > 1:
            wrong[name] = f"{len(errors)} lines: {errors}"
        played.end()
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    comes_back(domu, lun)
    check_unmapped(domu, before)


CONNECTS: dict[str, tuple[Keys, str]] = {
    "no sectors": ({"sector-size": 512, "info": 0}, "reading backend fields"),
    "sectors as text": ({**SMALL, "sectors": "many"}, "reading backend fields"),
    "no sector-size": ({"sectors": 0, "info": 0}, "reading backend fields"),
    "sector-size as text": ({**SMALL, "sector-size": "large"}, "reading backend fields"),
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
    "persistent as text": ({**SMALL, "feature-persistent": "yes"}, ""),
}


def test_disks_are_nonsense(lun: RigLun, played: PlayedBackEnd) -> None:
    """What is published when a ring was made: a disk, or one line and no disk."""
    wrong: dict[str, str] = {}
    for name, (keys, word) in CONNECTS.items():
        played.make()
        played.publish("InitWait")
        state = played.front("Initialised")
        assert state == "Initialised", f"before {name}: the front end made no ring: {state}"
        played.publish("Connected", keys)
        if word:
            until = Deadline("an error of the front end", ERROR_WITHIN)
            errors = poll(played.errors, until)
            if len(errors) != 1 or not re.search(word, errors[0]):
                wrong[name] = f"logged {errors}, not one line of {word!r}"
        else:
            state = played.front("Connected")
            if state != "Connected" or played.errors():
                wrong[name] = f"{state}, {played.errors()}"
        played.end()
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    comes_back(played.domu, lun)


JUMPS = {
    "Connected at once": ["Connected"],
    "Closing at once": ["Closing", "Closed"],
    "Closed at once": ["Closed"],
    "InitWait twice, then Closed": ["InitWait", "InitWait", "Closed"],
    "a state that is none": ["InitWait", "99", "Closing", "Closed"],
    "back to InitWait": ["InitWait", "Connected", "Connected", "InitWait"],
}


def test_back_end_skips_states(lun: RigLun, played: PlayedBackEnd) -> None:
    domu = played.domu
    before = domu.mapped_refs()
    wrong: dict[str, str] = {}
    for name, states in JUMPS.items():
        played.make()
        for state in states:
            played.publish(state, SMALL)
            time.sleep(0.3)
        errors = played.errors()
        played.end()
        if len(errors) > 1:
            wrong[name] = f"{len(errors)} lines: {errors}"
        elif left := domu.mapped_refs() - before:
            wrong[name] = f"references {sorted(left)} are still mapped"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    comes_back(domu, lun)
    check_unmapped(domu, before)
