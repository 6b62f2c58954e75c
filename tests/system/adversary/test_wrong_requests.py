"""A front end that puts wrong requests on the ring: each gets one answer, and touches nothing.

The front end is the series' with a patch by which a test writes whole requests (front-ends/
raw-requests.patch). Good requests go among the wrong ones, and to another disk. What the LUN
was asked is the witness: nothing but what a good request asked for.
"""

from __future__ import annotations

import itertools

import pytest
from back_ends import front_end
from raw_cases import MOST, RAW, SPOILED, UNTOUCHED, Cases, play, told, touched
from raw_requests import (
    BARRIER,
    DISCARD,
    ERROR,
    FLUSH,
    INDIRECT,
    NAMES,
    NEVER,
    OKAY,
    OTHERS,
    READ,
    READ_ONLY,
    REVOKED,
    UNSUPPORTED,
    WRITE,
    RawFrontEnd,
    Segment,
    direct,
    discard,
    indirect,
)

from emu.rig import Ledger, RigHost, RigLun

HALF = 2**63


def operations(cases: Cases) -> None:
    page = cases.front.segment(0)
    for operation in (4, 7, 99, 255):
        wrong = direct(operation, cases.place(), page)
        cases.refused(f"operation {operation}", wrong, UNSUPPORTED)
    for operation in (INDIRECT, FLUSH, BARRIER, DISCARD, 4, 99):
        wrong = indirect(operation, cases.place(), (page,) * 12)
        cases.refused(f"indirect request of operation {operation}", wrong, ERROR, UNSUPPORTED)


def counts(cases: Cases) -> None:
    page = cases.front.segment(UNTOUCHED)
    for operation in (READ, WRITE):
        for count in (0, 12, 255):
            wrong = direct(operation, cases.place(), *[page] * 11, count=count)
            cases.refused(f"{NAMES[operation]} of {count} segments", wrong)
        for count in (0, MOST + 1, 513, 65535):
            # Several pages, as Xen does not map one more than 255 times.
            frames = [tuple(cases.front.segment(UNTOUCHED + n % 8) for n in range(512))] * 8
            wrong = indirect(operation, cases.place(), *frames, count=count)
            cases.refused(f"indirect {NAMES[operation]} of {count} segments", wrong)
    wrong = direct(FLUSH, 0, *[page] * 11, count=12)
    cases.refused("flush of 12 segments", wrong)


def sectors(cases: Cases) -> None:
    whole = cases.front.segment(UNTOUCHED)
    for first, last in ((4, 2), (7, 0), (0, 8), (0, 255), (8, 8), (255, 255)):
        wrong = Segment(whole.ref, first, last)
        name = f"sectors {first} to {last} of a page"
        cases.either(name, READ, wrong)
        cases.either(f"{name}, the last of 11", WRITE, *[whole] * 10, wrong)
    at = cases.place()
    part = Segment(cases.front.refs[SPOILED], 2, 3)
    cases.okay("read of a part of a page", direct(READ, at, part), "read", at, 2)


def places(cases: Cases) -> None:
    page = cases.front.segment(UNTOUCHED)
    end = cases.end
    wrong = (end - 7, end - 4, end, end + 8, 2**32, 2**32 + 8, HALF, 2 * HALF - 8, 2 * HALF - 1)
    for sector, operation in zip(wrong, itertools.cycle((READ, WRITE))):
        name = f"{NAMES[operation]} at sector {sector} of {end}"
        cases.refused(name, direct(operation, sector, page))
        other = WRITE if operation == READ else READ
        name = f"indirect {NAMES[other]} at sector {sector} of {end}"
        cases.refused(name, indirect(other, sector, (page,) * 12))
    last = direct(WRITE, end - 8, cases.front.segment(0))
    cases.okay("write of the last sectors", last, "write", end - 8)


def references(cases: Cases) -> None:
    front = cases.front
    good = front.segment(UNTOUCHED)
    wrong = {
        "never granted": NEVER,
        "granted no more": front.refs[REVOKED],
        "granted to another domain": front.refs[OTHERS],
    }
    for (what, ref), place in itertools.product(wrong.items(), (0, 5, 10)):
        pages = [good] * 11
        pages[place] = Segment(ref)
        cases.either(f"page {place + 1} of 11 {what}", WRITE if place == 5 else READ, *pages)
    # They are mapped eleven at a time.
    for place in (11, 21, 22, 31):
        pages = [good] * 32
        pages[place] = Segment(NEVER)
        name = f"indirect read, page {place + 1} of 32 never granted"
        cases.refused(name, indirect(READ, cases.place(), tuple(pages)))
    for what, ref in wrong.items():
        name = f"indirect read, the page of its segments {what}"
        cases.refused(name, indirect(READ, cases.place(), ref, count=12))
    cases.either("page that may not be written", READ, front.segment(READ_ONLY))


def discards(cases: Cases) -> None:
    end = cases.end
    for sector, count in (
        (end, 8),
        (end - 4, 8),
        (HALF, 8),
        (2 * HALF - 8, 8),
        (2 * HALF - 4, 8),
        (8, 2 * HALF - 8),
        (8, 2 * HALF - 1),
        (0, HALF),
    ):
        wrong = discard(sector, count)
        cases.refused(f"discard of {count} sectors from {sector} on, of {end}", wrong)
    cases.refused("discard of no sectors", discard(64, 0), OKAY, ERROR)
    at = cases.place()
    cases.okay("discard", discard(at, 64), "unmap", at, 64)


def unusual(cases: Cases) -> None:
    """What may look wrong and is not."""
    front = cases.front
    page = front.segment(0)
    at = cases.place()
    cases.okay("write of one page twice", direct(WRITE, at, page, page), "write", at, 16)
    at = cases.place()
    one = indirect(WRITE, at, (page,))
    cases.okay("indirect write of one segment", one, "write", at)
    at = cases.place()
    most = tuple(front.segment(number % SPOILED) for number in range(MOST))
    name = f"indirect write of {MOST} segments"
    cases.okay(name, indirect(WRITE, at, most), "write", at, 8 * MOST)
    for id in (HALF, 2 * HALF - 1):
        at = cases.place()
        cases.okay(f"id {id}", direct(WRITE, at, page, id=id), "write", at)
    # A ring is of one disk, whatever a request says.
    at = cases.place()
    cases.okay("handle of another disk", direct(WRITE, at, page, disk="xvdb"), "write", at)
    for operation in (FLUSH, BARRIER):
        at = cases.place()
        name = f"{NAMES[operation]} with a segment"
        cases.okay(name, direct(operation, at, page), "write", at)
        cases.okay(NAMES[operation], direct(operation, 0))
    cases.okay("flush at a sector that is none", direct(FLUSH, HALF))


GROUPS = (operations, counts, sectors, places, references, discards, unusual)


@pytest.mark.parametrize("persistent", [0, 1], ids=["mapped anew", "persistent"])
def test_each_request_gets_one_answer(
    host: RigHost, lun: RigLun, ledger: Ledger, persistent: int
) -> None:
    other = host.create_lun(size_mib=16)
    domu = host.create(
        front=front_end(host, RAW), back_parameters={"feature_persistent": persistent}
    )
    with ledger.unchanged():
        domu.attach(lun)
        domu.attach(other)
        written = domu.fill()
        cases = Cases(RawFrontEnd(domu), lun)
        for group in GROUPS if not persistent else (references, unusual):
            group(cases)
            cases.good(len(cases))
        with domu.verifying_io(outstanding=4, disk=other):
            wrong = play(cases)
        assert not wrong, told(wrong)
        assert domu.sum() == written, "the LUN does not hold what was written before"
        domu.detach(other)
        domu.detach(lun)
        domu.wait_gone()


def test_each_disk_has_rules_of_its_own(host: RigHost, lun: RigLun) -> None:
    large = host.create_lun(size_mib=64, sector=4096)
    domu = host.create(front=front_end(host, RAW))
    domu.attach(lun, mode="r")
    domu.attach(large)
    wrong: dict[str, str] = {}
    for disk, group in (("xvda", read_only), ("xvdb", large_sectors)):
        cases = Cases(RawFrontEnd(domu, disk), domu.lun(disk))
        group(cases)
        wrong |= {f"{group.__name__}: {name}": what for name, what in play(cases).items()}
    assert not wrong, told(wrong)


def read_only(cases: Cases) -> None:
    page = cases.front.segment(0)
    for operation in (WRITE, BARRIER, FLUSH):
        cases.refused(NAMES[operation], direct(operation, cases.place(), page))
    cases.refused("indirect write", indirect(WRITE, cases.place(), (page,) * 12))
    cases.refused("discard", discard(cases.place(), 64))
    at = cases.place()
    good = direct(READ, at, cases.front.segment(SPOILED))
    cases.okay("good read", good, "read", at)


def large_sectors(cases: Cases) -> None:
    ref = cases.front.refs[UNTOUCHED]
    whole, parts = Segment(ref), (Segment(ref, 0, 3), Segment(ref, 4, 7))
    for operation in (READ, WRITE):
        name = NAMES[operation]
        for sector in (1, 4, 7):
            at = cases.place() + sector
            cases.refused(f"{name} from sector {at} on", direct(operation, at, whole))
            wrong = indirect(operation, at + 8, (whole,) * 12)
            cases.refused(f"indirect {name} from sector {at + 8} on", wrong)
        cases.either("half a page", operation, parts[0])
        cases.either("two halves of a page", operation, *parts)
    cases.good(1)


AHEAD = {"one more than the ring has": 32, "half of all": 2**31 - 1, "back": -2}
"""What a front end shows of its requests beside the one that it has made, of a ring of 32."""


def test_ring_index_is_impossible(host: RigHost, lun: RigLun) -> None:
    """The back end stops to look at the ring, says so in one line, and lets go of it."""
    other = host.create_lun(size_mib=16)
    domu = host.create(front=front_end(host, RAW))
    domu.attach(other, "xvdb")
    front = RawFrontEnd(domu)
    before = domu.mapped_refs()
    wrong: dict[str, str] = {}
    for name, ahead in AHEAD.items():
        domu.attach(lun)
        written = domu.fill()
        host.log.mark()
        since = lun.mark()
        earlier = len(front.answers())
        front.send(direct(WRITE, 0, front.segment(0)), ahead=ahead)
        if domu.fill(other) != domu.sum(other):
            wrong[name] = "the disk beside holds other data than was written"
        lines = host.log.lines("bogus ring requests")
        if len(lines) != 1:
            wrong[name] = f"dom0 logged {len(lines)} lines of bogus requests, not one: {lines}"
        elif came := front.answers()[earlier:]:
            wrong[name] = f"was answered: {', '.join(map(str, came))}"
        elif what := touched(lun, since, []):
            wrong[name] = told(what)
        domu.detach(lun)
        domu.wait_gone("xvda")
        if left := domu.mapped_refs() - before - set(domu.data_refs()):
            wrong.setdefault(name, f"dom0 still maps references {sorted(left)} of the ring")
        domu.attach(lun)
        if domu.sum() != written:
            wrong.setdefault(name, "the LUN holds other data than before")
        domu.detach(lun)
        domu.wait_gone("xvda")
    assert not wrong, told(wrong)
