"""Nothing leaks: neither a grant, nor a page, an object, a thread or an interrupt a cycle.

One round is for warming up, then each is measured in dom0 and in the domU: see
`emu.rig.ledger.Ledger.cycles`. By default two cases run as often as memory needs to tell
growth from noise, and the others twice, for grants, threads and interrupts; `-m long` has all.
The back end knows a PV domU from a PVH one by nothing but a domain's number, so that one case
in PVH is for the front end and Xen.
"""

from __future__ import annotations

import re

import pytest
from driver_checks import check_data, check_pages

from emu.rig import Ledger, RigHost, RigLun

CYCLES = 5
TWICE_OR_MORE = pytest.mark.parametrize(
    "cycles", [1, pytest.param(2 * CYCLES, marks=pytest.mark.long)], ids=["twice", "10 cycles"]
)
MANY = [pytest.mark.long, pytest.mark.stack(kernel="lab")]
PVH = pytest.mark.stack(domu="pvh")


@pytest.mark.parametrize(
    ("cycles", "pages"),
    [
        pytest.param(CYCLES, 16, id="5 cycles, 16 pages"),
        pytest.param(CYCLES, 16, id="5 cycles, 16 pages, pvh", marks=[PVH, pytest.mark.long]),
        pytest.param(50, 64, id="50 cycles, 64 pages", marks=MANY),
    ],
)
def test_attach_and_detach(
    host: RigHost, lun: RigLun, ledger: Ledger, cycles: int, pages: int
) -> None:
    domu = host.create(ring_pages=pages)
    for _ in ledger.cycles(cycles):
        check_pages(domu.attach(lun), pages)
        domu.fill(lun, mib=1)
        ledger.look()
        domu.detach(lun)
        domu.wait_gone()


@TWICE_OR_MORE
def test_forced_detach(host: RigHost, lun: RigLun, ledger: Ledger, cycles: int) -> None:
    domu = host.create(ring_pages=4)
    for _ in ledger.cycles(cycles):
        domu.attach(lun)
        domu.fill(lun, mib=1)
        ledger.look()
        domu.force_detach()
        domu.wait_gone()


@TWICE_OR_MORE
def test_front_end_unloaded(host: RigHost, lun: RigLun, ledger: Ledger, cycles: int) -> None:
    """The driver lets go of a connected disk, its module goes, and another takes the disk up."""
    domu = host.create(ring_pages=4)
    with ledger.unchanged():
        domu.attach(lun)
        domu.fill(lun, mib=1)
        ledger.look()
        domu.unbind_front()
    for _ in ledger.cycles(cycles):
        domu.load_front("patched", **host.limit("front", 4))
        domu.wait_connected()
        domu.fill(lun, mib=1)
        ledger.look()
        domu.unbind_front()


@TWICE_OR_MORE
def test_back_end_unbound_and_bound(
    host: RigHost, lun: RigLun, ledger: Ledger, cycles: int
) -> None:
    """dom0's driver lets go of a connected ring, and takes the same up again: the front end
    does not notice (`allow_rebind` of xen-blkback).
    """
    domu = host.create(disk=lun, ring_pages=4, back_parameters={"feature_persistent": 0})
    ring = set(domu.ring(lun).refs)
    for _ in ledger.cycles(cycles):
        domu.fill(lun, mib=1)
        domu.unbind_back()
        mapped = domu.mapped_refs()
        assert not mapped & ring, f"dom0 still maps {sorted(mapped & ring)} of an unbound disk"
        state = domu.domain.front_tree().state()
        assert state == "Connected", f"the front end noticed: it is in {state}"
        domu.bind_back()
        again = set(domu.wait_connected().refs)
        assert again == ring, f"the ring is another: references {sorted(again)}, not {sorted(ring)}"
        check_data(domu, lun)


NOBODYS = 4000000000
"""A reference far past the end of the table."""
CHANNEL = 8
"""A page that the domU grants to dom0: its second console's, the first of its allocator."""
TAKEN = 1
"""An event channel that is bound already: the one to xenstored."""
NO_RING = "mapping ring-ref|requests"
STEPS = {
    "no event channel": {"ring-ref": CHANNEL},
    "no reference": {"event-channel": 1},
    "reference never granted": {"event-channel": 1, "ring-ref": NOBODYS},
    "second page never granted": {
        "event-channel": 1,
        "ring-page-order": 1,
        "ring-ref0": CHANNEL,
        "ring-ref1": NOBODYS,
    },
    "page that is no ring": {"event-channel": TAKEN, "ring-ref": CHANNEL},
    "page that is no ring, of two queues": {
        "multi-queue-num-queues": 2,
        "queue-0/event-channel": 1,
        "queue-0/ring-ref": CHANNEL,
        "queue-1/event-channel": 1,
        "queue-1/ring-ref": NOBODYS,
    },
}

SAID = {
    "no event channel": "reading .*/event-channel",
    "no reference": "reading .*/ring-ref",
    "reference never granted": "mapping in shared page",
    "second page never granted": "mapping in shared page",
    "page that is no ring": NO_RING,
    "page that is no ring, of two queues": NO_RING,
}
"""How far dom0 got, by its line."""

# All of a step in one go: keys, "Initialised", the refusal, then everything as it was.
FAIL = """
front=$1 back=$2; shift 2
reaches() {
    echo "waiting for state $1 of the back end"
    until [ "$(xenstore-read $back/state)" = $1 ]; do usleep 20000; done
}
written=
while [ $# -gt 0 ]; do
    xenstore-write $front/$1 $2
    written="$written $front/$1"; shift 2
done
xenstore-write $front/state 3
reaches 5
xenstore-rm $written
xenstore-write $front/state 6
reaches 6
xenstore-write $front/state 1
reaches 2
"""


def test_set_up_that_fails_at_every_step(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """dom0 gets as far as each of these keys allows, and gives all of it back.

    Without a front end there is no page of a ring, so that none gets past its first ring.
    """
    domu = host.create(front=None, back_parameters={"max_queues": 4})
    disk = domu.offer(lun)
    roots = [domu.domain.front_path(disk), domu.domain.back_path(disk)]
    for _ in ledger.cycles(CYCLES):
        host.log.mark()
        for keys in STEPS.values():
            words = [str(word) for pair in keys.items() for word in pair]
            host.dom0.run(["sh", "-c", FAIL, "sh", *roots, *words], timeout=60)
        errors = domu.errors()
        assert len(errors) == len(STEPS), f"{len(STEPS)} set-ups failed, dom0 tells of {errors}"
        wrong = [
            f"{step}: {line}"
            for step, line in zip(STEPS, errors, strict=True)
            if not re.search(SAID[step], line)
        ]
        assert not wrong, "dom0 refused these for something else: " + "; ".join(wrong)
