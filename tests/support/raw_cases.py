"""Cases of raw requests: how each may be answered, and what it asks of the LUN.

cases = Cases(RawFrontEnd(domu), lun)
cases.refused("operation 99", direct(99, cases.place()), UNSUPPORTED)
cases.good(1)
wrong = play(cases)
assert not wrong, told(wrong)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from raw_requests import (
    ERROR,
    NAMES,
    OKAY,
    OTHERS,
    PAGE,
    READ,
    REVOKED,
    STATUSES,
    WRITE,
    Answer,
    Raw,
    RawFrontEnd,
    Segment,
    direct,
    indirect,
)

from emu.rig import RigLun

RAW = "raw-requests"
"""The front end that puts them on the ring."""
BATCH = 30
"""Requests that go on a ring of one page at once; it has room for 32."""
MOST = 256
"""Segments that blkback takes in an indirect request (MAX_INDIRECT_SEGMENTS)."""
SPOILED, UNTOUCHED = 4, 8
"""The page that good reads fill, and the one that only refused reads name."""
_MARK = b"untouched" * 455 + b"\0"
SECTOR = 512


@dataclass(frozen=True)
class Case:
    """A request, how it may be answered, and what it asks of the LUN: kind, first, sectors."""

    request: Raw
    statuses: tuple[int, ...]
    asks: tuple[str, int, int] | None = None


class Cases(dict[str, Case]):
    """Cases of one disk by their names; each has a place of its own there."""

    def __init__(self, front: RawFrontEnd, lun: RigLun) -> None:
        super().__init__()
        self.front = front
        self.end = lun.lun.size // SECTOR
        self.places = itertools.count(4096, MOST * 8)

    def place(self) -> int:
        """A sector that is no other case's."""
        return next(self.places)

    def refused(self, name: str, request: Raw, *statuses: int) -> None:
        self[name] = Case(request, statuses or (ERROR,))

    def okay(self, name: str, request: Raw, kind: str = "", first: int = 0, count: int = 8) -> None:
        self[name] = Case(request, (OKAY,), (kind, first, count) if kind else None)

    def either(self, name: str, operation: int, *segments: Segment) -> None:
        """A request that is refused, by itself and as an indirect one."""
        what = f"{NAMES[operation]}, {name}"
        self.refused(what, direct(operation, self.place(), *segments))
        self.refused(f"indirect {what}", indirect(operation, self.place(), segments))

    def good(self, number: int) -> None:
        """A write and a read that are fine."""
        at = self.place()
        page = self.front.segment(number % SPOILED)
        self.okay(f"good write {number}", direct(WRITE, at, page), "write", at)
        at = self.place()
        page = self.front.segment(SPOILED)
        self.okay(f"good read {number}", direct(READ, at, page), "read", at)


def judge(case: Case, answers: list[Answer]) -> str:
    """What is wrong with the answers to a request; "" when nothing is."""
    if len(answers) != 1:
        return f"{len(answers)} answers came" + "".join(f", {answer}" for answer in answers)
    [answer] = answers
    if answer.operation != case.request.answered_as:
        asked = case.request.answered_as
        return f"was answered as {answer}, not as {NAMES.get(asked, f'operation {asked}')}"
    if answer.status not in case.statuses:
        wanted = " or ".join(STATUSES[status] for status in case.statuses)
        return f"was answered as {answer}, not {wanted}"
    return ""


def touched(lun: RigLun, since: int, cases: Iterable[Case]) -> dict[str, str]:
    """What the LUN was asked for that no good request asks for, and the other way round."""
    wanted: dict[str, set[int]] = {"read": set(), "write": set(), "unmap": set()}
    now: dict[str, set[int]] = {"read": set(), "write": set(), "unmap": set()}
    for case in cases:
        if case.asks:
            kind, first, count = case.asks
            wanted[kind].update(range(first, first + count))
    per = lun.lun.sector // SECTOR
    for request in lun.requests(since):
        if request.operation in now:
            where = range(request.lba * per, (request.lba + request.blocks) * per)
            now[request.operation].update(where)
    wrong = {}
    for kind in wanted:
        if stray := sorted(now[kind] - wanted[kind]):
            wrong[f"{kind} of {len(stray)} sectors from {stray[0]} on of the LUN"] = (
                "no good request asks for that"
            )
        if lost := sorted(wanted[kind] - now[kind]):
            wrong[f"{kind} of {len(lost)} sectors from {lost[0]} on of the LUN"] = (
                "never came there"
            )
    return wrong


def at_rest(front: RawFrontEnd) -> dict[str, str]:
    """What the back end keeps of raw requests that were all answered."""
    back = front.domu.queues(front.disk).back
    assert back, "the back end shows no queue"
    wrong = {}
    for name, number in back[0].numbers().items():
        if name in ("outstanding", "persistent_grants_in_use") and number:
            wrong["when all is answered"] = f"the back end shows {name}: {number}"
    wrong_pages = {front.refs[page] for page in (OTHERS, REVOKED)}
    mapped = front.domu.mapped_refs()
    persistent = back[0].persistent
    # A page of raw requests may be mapped for another disk.
    kept = mapped & (set(front.domu.data_refs()) | set(front.refs))
    counted = back[0].persistent_grants or 0
    if counted > len(kept):
        wrong["grants at rest"] = (
            f"the back end counts {counted} persistent grants, and dom0 maps {len(kept)} pages"
        )
    if left := mapped & (wrong_pages if persistent else set(front.refs)):
        wrong["when all is answered"] = f"dom0 still maps references {sorted(left)} of requests"
    return wrong


def play(cases: Cases) -> dict[str, str]:
    """Ask all of `cases`, as many at once as the ring takes; what is wrong, by name."""
    front = cases.front
    lun = front.domu.lun(front.disk)
    front.fill(0, b"".join(bytes([65 + number]) * PAGE for number in range(SPOILED)))
    front.fill(UNTOUCHED, _MARK)
    earlier, since = front.sent, lun.mark()
    front.domu.host.log.mark()
    sent: list[Case] = []
    for some in batched(cases, BATCH):
        front.send(*(case.request for case in some))
        sent += some
        if not front.wait():
            break
    # An answer too many comes at once, if one does; all of this takes longer.
    wrong = {**touched(lun, since, sent), **at_rest(front)}
    lines = [line for line in front.domu.host.log.lines() if "xen-blkback" not in line]
    if lines:
        # The back end is to refuse them before the disk has to.
        wrong["dom0"] = f"its kernel logged {lines[:3]}"
    if front.look(UNTOUCHED) != _MARK:
        wrong["a page that refused reads name"] = "has other data"
    answers = front.answers()[earlier:]
    for name, case in cases.items():
        if case in sent:
            came = [answer for answer in answers if answer.id == case.request.id]
            wrong |= {name: what} if (what := judge(case, came)) else {}
    known = {case.request.id for case in sent}
    for answer in answers:
        if answer.id not in known:
            wrong[f"id {answer.id}"] = f"was answered ({answer}), and never asked"
    return wrong


def batched(cases: Cases, size: int) -> Iterator[list[Case]]:
    left = iter(cases.values())
    while some := list(itertools.islice(left, size)):
        yield some


def told(wrong: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {what}" for name, what in wrong.items())
