"""The grant ledger: both views of every domain's grants at one time, and what changed since.

One view is the hypervisor's dump (what is mapped), the other the guest's own account (what
is granted, what its allocator has handed out, what waits to be freed). Two sets of books are
compared reference by reference; where a reference has a known purpose on both sides (a ring
page, a console), its number may have changed, for a guest that connects again or is restored
takes new ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from emu.xen import vdev
from emu.xen.granted import Entry, GrantAccount, Table
from emu.xen.grants import Grant
from emu.xen.xenstore import XenstoreTree

_RING = re.compile(r"vbd/(\d+)/(?:queue-(\d+)/)?ring-ref(\d*)$")
_CONSOLE = re.compile(r"console/(\d+)/ring-ref$")
_RESERVED = {0: "console", 1: "xenstore"}

FREE, GRANTED, MAPPED, CLAIMED = "free", "granted", "granted, mapped", "claimed, grants nothing"
DEFERRED, DEFERRED_MAPPED = "waits to be freed", "mapped, waits to be freed"
ONLY_MAPPED = "not granted any more, but mapped"


def disk_of(number: int) -> str:
    """The name of a virtual device's number as Linux has it: 51712 is xvda."""
    found = vdev.of_number(number)
    return f"vbd {number}" if found is None else found.linux


def purposes(tree: XenstoreTree) -> dict[int, str]:
    """What a domain's references are for, as far as its keys in xenstore show; by reference.

    `tree` is /local/domain/<domid>/device. Keys stay after the reference is gone: what is not
    granted has no purpose, whatever a key holds.
    """
    found = dict(_RESERVED)
    for path, value in tree.values.items():
        place = path.removeprefix(tree.root).lstrip("/")
        if not value.isdecimal():
            continue
        if ring := _RING.fullmatch(place):
            queue = f", queue {ring[2]}" if ring[2] else ""
            found[int(value)] = f"ring page {ring[3] or 0} of {disk_of(int(ring[1]))}{queue}"
        elif console := _CONSOLE.fullmatch(place):
            found[int(value)] = f"console {console[1]}"
    return found


@dataclass(frozen=True)
class DomainBooks:
    """One domain's grants at an instant. `table` is None where dom0 can't read it (its own, or
    a domain's that has ended); `account`, where the guest could not be asked."""

    name: str
    domid: int
    mapped: tuple[Grant, ...]
    table: Table | None = None
    account: GrantAccount | None = None
    purposes: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))

    def references(self) -> dict[int, State]:
        """Every reference that is not free, from both views."""
        entries = {entry.ref: entry for entry in self.table.entries} if self.table else {}
        mapped: dict[int, list[Grant]] = {}
        for grant in self.mapped:
            mapped.setdefault(grant.ref, []).append(grant)
        idle = self.account.idle_refs(self.table) if self.account and self.table else frozenset()
        deferred = set(self.account.deferred) if self.account else set()
        refs = sorted({*entries, *mapped, *idle, *deferred})
        return {
            ref: State(ref, entries.get(ref), tuple(mapped.get(ref, ())), ref in deferred)
            for ref in refs
        }

    def word(self, state: State, remembered: Mapping[int, str]) -> str:
        """What a reference is for, or was when it was last looked at, or seems to be."""
        if state.entry and state.ref in self.purposes:
            return self.purposes[state.ref]
        if state.ref in remembered:
            return f"was {remembered[state.ref]}"
        return "other: data of a request, or a persistent grant" if state.entry else "other"


@dataclass(frozen=True)
class State:
    """What both views show of one reference that is not free."""

    ref: int
    entry: Entry | None
    mapped: tuple[Grant, ...]
    deferred: bool

    @property
    def frame(self) -> int | None:
        """The guest's frame that it grants, or dom0 maps."""
        if self.entry:
            return self.entry.frame
        return self.mapped[0].gmfn if self.mapped else None

    @property
    def mappers(self) -> tuple[int, ...]:
        """The domains that map it right now."""
        return tuple(sorted({grant.mapper for grant in self.mapped}))

    def __str__(self) -> str:
        mapped = bool(self.mapped or (self.entry and self.entry.in_use))
        if self.deferred:
            return DEFERRED_MAPPED if mapped else DEFERRED
        if self.entry:
            return MAPPED if mapped else GRANTED
        return ONLY_MAPPED if self.mapped else CLAIMED


@dataclass(frozen=True)
class Books:
    """All domains' grants at one instant, by the domain's name."""

    domains: Mapping[str, DomainBooks]


@dataclass(frozen=True)
class LedgerDifference:
    """A line of the table: one reference that is not what it was. Without one, `ref` is None."""

    domain: str
    ref: int | None
    frame: int | None
    to: int | None
    mappers: tuple[int, ...]
    before: str
    after: str
    what: str

    HEAD = ("domain", "ref", "frame", "granted to", "mapped by", "before", "after", "what")

    def cells(self) -> tuple[str, ...]:
        """Its columns as text, under `HEAD`."""
        return (
            self.domain,
            "" if self.ref is None else str(self.ref),
            "" if self.frame is None else f"{self.frame:#x}",
            "" if self.to is None else f"d{self.to}",
            ", ".join(f"d{mapper}" for mapper in self.mappers),
            self.before,
            self.after,
            self.what,
        )


def compare(
    before: Books, after: Books, remembered: Mapping[int, Mapping[int, str]] | None = None
) -> tuple[LedgerDifference, ...]:
    """What is not as it was. `remembered`: purposes of references seen in between, by domid.

    A domain that is gone has given everything back; one that is new, and grants something
    or is mapped, is a difference from its first reference on.
    """
    known = remembered or {}
    found: list[LedgerDifference] = []
    for name, now in sorted(after.domains.items()):
        then = before.domains.get(name, DomainBooks(name, now.domid, ()))
        found += _references(then, now, known.get(now.domid, {}))
        found += _counts(then, now)
    return tuple(found)


def _references(
    then: DomainBooks, now: DomainBooks, remembered: Mapping[int, str]
) -> Iterator[LedgerDifference]:
    old, new = then.references(), now.references()
    pairs = list(_pairs(then, old, now, new))
    for before, after in pairs:
        was = str(before) if before else FREE
        now_is = str(after) if after else FREE
        changed_hands = (
            before and after and (_to(before), before.mappers) != (_to(after), after.mappers)
        )
        if was == now_is and not changed_hands:
            continue
        shown = after or before
        assert shown is not None
        books, names = (now, remembered) if after else (then, {})
        word = books.word(shown, names)
        if changed_hands and before:
            was += f" (to d{_to(before)}, by {list(before.mappers)})"
        yield LedgerDifference(
            now.name, shown.ref, shown.frame, _to(shown), shown.mappers, was, now_is, word
        )


def _to(state: State) -> int | None:
    return state.entry.to if state.entry else None


def _pairs(
    then: DomainBooks, old: Mapping[int, State], now: DomainBooks, new: Mapping[int, State]
) -> Iterator[tuple[State | None, State | None]]:
    """The same reference before and after: by its purpose, else by its number."""
    purposes_then = {then.purposes[r]: r for r, s in old.items() if s.entry and r in then.purposes}
    left_old, left_new = dict(old), dict(new)
    for ref, state in new.items():
        purpose = now.purposes.get(ref) if state.entry else None
        if purpose in purposes_then:
            yield left_old.pop(purposes_then[purpose]), left_new.pop(ref)
    for ref in sorted({*left_old, *left_new}):
        yield left_old.get(ref), left_new.get(ref)


def _counts(then: DomainBooks, now: DomainBooks) -> Iterator[LedgerDifference]:
    """What only the allocator's numbers show."""

    def line(before: object, after: object, what: str) -> LedgerDifference:
        return LedgerDifference(now.name, None, None, None, (), str(before), str(after), what)

    if then.account is None or then.table is None:
        return
    if now.account is None or now.table is None:
        yield line("read", "not read", "its kernel's account of grant references")
        return
    if now.account.taken is None:
        before, after = then.account.idle(then.table), now.account.idle(now.table)
        if before != after:
            yield line(before, after, "references claimed that grant nothing")
    if (then.account.leaked or 0) != (now.account.leaked or 0):
        yield line(then.account.leaked, now.account.leaked, "references given up for good")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Columns as aligned lines of text."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def differences_table(differences: Iterable[LedgerDifference]) -> list[str]:
    """The lines that show which references differ, and how."""
    return table(LedgerDifference.HEAD, (each.cells() for each in differences))


__all__ = [
    "Books",
    "DomainBooks",
    "LedgerDifference",
    "State",
    "compare",
    "differences_table",
    "purposes",
    "table",
]
