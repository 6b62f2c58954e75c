"""The ledger of a host, for tests: what was granted, mapped and held before, and is after.

with ledger.unchanged():            # both views of the grants, threads, interrupts
    domu.attach(lun)
    domu.detach(lun)

for _ in ledger.cycles(10):         # and memory: a leak shows as growth in every cycle
    domu.attach(lun)
    domu.detach(lun)
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from emu.channel.channel import Channel
from emu.deadline import Deadline, poll
from emu.errors import NotHeld
from emu.rig.domu import RigDomu
from emu.rig.host import RigHost
from emu.rig.known_leaks import leaked_by_console
from emu.xen import granted, hypervisor, ledger, memory
from emu.xen.grants import GrantTable
from emu.xen.ledger import Books, DomainBooks, LedgerDifference, differences_table
from emu.xen.memory import Growth, Memory

SETTLES_WITHIN = 8.0
"""Seconds, before scaling, until all is given back after the last verb returned. A guest looks
once a second for pages that it could not free while they were mapped (gnttab_handle_deferred)."""
_PAUSE = 0.2
CONFIRMING = 3
"""Extra rounds where memory seems to grow: noise does not last so long."""
_NAMED, _SHOWN = 4, 40
"""References that a message's first line names, and lines of its table."""
_AT_ONCE = "echo 0 > /sys/module/grant_table/parameters/free_per_iteration || true"
"""Linux tries ten a second of the pages that wait to be freed; with this, all of them."""


@dataclass(frozen=True)
class Snapshot:
    """The books of all domains, and what has no noise in either kernel and Xen."""

    books: Books
    standing: tuple[Memory, ...]


@dataclass(frozen=True)
class Changes:
    """What is not as it was."""

    grants: tuple[LedgerDifference, ...]
    standing: tuple[Growth, ...]

    def __bool__(self) -> bool:
        return bool(self.grants or self.standing)

    def headline(self) -> str:
        """One sentence that names what was not given back."""
        named = [_named(each) for each in self.grants] + [
            f"{each.what} of {each.owner}: {each.values[0]} before, {each.values[-1]} after"
            for each in self.standing
        ]
        more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        return f"not back at the baseline: {'; '.join(named[:_NAMED])}{more}"

    def lines(self) -> list[str]:
        """Tables of everything that differs."""
        shown = differences_table(self.grants[:_SHOWN]) if self.grants else []
        if len(self.grants) > _SHOWN:
            shown.append(f"… and {len(self.grants) - _SHOWN} more")
        if self.standing:
            shown += ledger.table(Growth.HEAD, (each.cells() for each in self.standing))
        return shown


def _named(each: LedgerDifference) -> str:
    if each.ref is None:
        return f"{each.what} of {each.domain}: {each.before} before, {each.after} after"
    return f"grant reference {each.ref} of {each.domain} ({each.what}) is {each.after}"


class Ledger:
    """Takes the books of one host, and remembers what its references were for."""

    def __init__(self, host: RigHost) -> None:
        self.host = host
        self._remembered: dict[int, dict[int, str]] = {}

    def settle_at_once(self) -> None:
        """Let the domUs' kernels free all at once that they could not free while it was mapped."""
        for domu in self._domus:
            domu.channel.run(_AT_ONCE, timeout=20)

    def take(self) -> Snapshot:
        """The books and the standing numbers right now."""
        xen = hypervisor.read(self.host.dom0)
        books = [self._domain(table, xen.names) for table in xen.grants.tables]
        standing = [self.own(memory.read_standing(guest)) for guest in self._guests()]
        return Snapshot(
            Books(MappingProxyType({each.name: each for each in books})), (*standing, xen.ports)
        )

    def look(self) -> None:
        """Remember what every reference is for that is granted now, for later messages."""
        for info in self.host.xen.list():
            if info.domid:
                self._remember(info.domid, granted.read_table(self.host.dom0, info.domid))

    def compare(self, before: Snapshot, after: Snapshot) -> Changes:
        """What is not as it was. A domain that is gone is no change, one that is new is."""
        return Changes(
            ledger.compare(before.books, after.books, self._remembered),
            tuple(_risen(before.standing, after.standing)),
        )

    def settled(self, before: Snapshot, within: float = SETTLES_WITHIN) -> Snapshot:
        """Wait until all is as it was; what was taken then.

        Raises NotHeld with a table of what is not, when `within` seconds have passed.
        """
        until = Deadline("everything to be given back", within)
        now, changes = poll(
            lambda: self._look_again(before), until, until=lambda look: not look[1], pause=_PAUSE
        )
        if changes:
            raise self._not_held(changes, until)
        return now

    def settled_but(
        self, before: Snapshot, refs: Collection[int], within: float = SETTLES_WITHIN
    ) -> tuple[LedgerDifference, ...]:
        """Wait until the grants are as they were but for `refs`, which may not be; those that
        are not. Raises NotHeld as `settled` for any other.
        """
        until = Deadline("everything else to be given back", within)
        _, changes = poll(
            lambda: self._look_again(before),
            until,
            until=lambda look: all(each.ref in refs for each in look[1].grants),
            pause=_PAUSE,
        )
        kept = tuple(each for each in changes.grants if each.ref in refs)
        others = tuple(each for each in changes.grants if each.ref not in refs)
        if others:
            raise self._not_held(replace(changes, grants=others), until)
        return kept

    def _look_again(self, before: Snapshot) -> tuple[Snapshot, Changes]:
        now = self.take()
        return now, self.compare(before, now)

    @contextlib.contextmanager
    def unchanged(self, within: float = SETTLES_WITHIN) -> Iterator[Ledger]:
        """What the body does is undone when it ends, or `within` seconds later.

        Raises NotHeld as `settled`.
        """
        before = self._start()
        yield self
        self.settled(before, within)

    def cycles(self, number: int, within: float = SETTLES_WITHIN) -> Iterator[int]:
        """Numbers for a loop whose body ends where it began, `number` of them after the first.

        The first round, number 0, is for what a first time allocates for good. Raises NotHeld
        when grants or standing numbers are not back at the end, or, from `MEASURABLE` rounds
        on, when memory has grown in every one (see `emu.xen.memory`). Growth, or a rise
        by leaps, is confirmed by `CONFIRMING` rounds more.
        """
        before = self._start()
        taken: list[tuple[Memory, ...]] = []
        for cycle in range(number + CONFIRMING + 1):
            if cycle > number and not (taken and memory.rising(taken)):
                break
            yield cycle
            self._wait_for_grants(before, within)
            if number >= memory.MEASURABLE:
                taken.append(tuple(self.own(memory.read(guest)) for guest in self._guests()))
        self.settled(before, within)
        if grown := memory.growth(taken) if taken else ():
            named = ", ".join(f"{each.slope:+.0f} {each.what} ({each.owner})" for each in grown)
            raise NotHeld(
                f"memory leaks with each of {len(taken) - 1} cycles: {named}",
                lines=ledger.table(Growth.HEAD, (each.cells() for each in grown)),
            )

    def own(self, taken: Memory) -> Memory:
        """Without what Linux' console driver has leaked in a domU that was resumed."""
        resumes = next((d.resumes for d in self._domus if d.name == taken.owner), 0)
        if not resumes:
            return taken
        leaked = leaked_by_console(self.host.stack.artifacts.domu_kernel)
        numbers = {
            name: number - resumes * leaked.get(name, 0) for name, number in taken.numbers.items()
        }
        return replace(taken, numbers=numbers)

    @staticmethod
    def _not_held(changes: Changes, until: Deadline) -> NotHeld:
        return NotHeld(f"{changes.headline()} ({until.spent:.0f} s later)", lines=changes.lines())

    def _start(self) -> Snapshot:
        self.settle_at_once()
        return self.take()

    @property
    def _domus(self) -> list[RigDomu]:
        """The domUs of this host that answer: not those that ended or are saved."""
        return [domu for domu in self.host.domus if not domu.ended and domu.domain.is_open]

    def _wait_for_grants(self, before: Snapshot, within: float) -> None:
        """Wait until the guest has taken back what it granted; its table alone is read quickly."""
        known = {each.domid: each for each in before.books.domains.values()}
        until = Deadline("the domUs' grants to be given back", within)
        for domu in self._domus:
            domid = domu.domain.domid
            table = known[domid].table if domid in known else None
            if table is None:
                continue
            if not self._grants_are(domid, table, until):
                self.settled(before, within=0)
                return

    def _grants_are(self, domid: int, table: granted.Table, until: Deadline) -> bool:
        """Wait until a domain, if it still is there, grants what it did; whether it does."""

        def same() -> bool:
            now = granted.read_table(self.host.dom0, domid)
            return now is None or now.refs == table.refs

        return poll(same, until, pause=_PAUSE)

    def _guests(self) -> list[Channel]:
        """dom0, and every domU that answers."""
        return [self.host.dom0, *(domu.channel for domu in self._domus)]

    def _domain(self, table: GrantTable, names: Mapping[int, str]) -> DomainBooks:
        name = names.get(table.domid, f"domain {table.domid}, which has ended")
        if table.domid == 0 or table.domid not in names:
            return DomainBooks(name, table.domid, table.grants)
        account = None
        for domu in self._domus:
            if domu.domain.domid == table.domid:
                account = granted.read_account(domu.channel)
        entries = granted.read_table(self.host.dom0, table.domid)
        purposes = self._remember(table.domid, entries)
        return DomainBooks(name, table.domid, table.grants, entries, account, purposes)

    def _remember(self, domid: int, entries: granted.Table | None) -> dict[int, str]:
        found = ledger.purposes(self.host.xen.xenstore(f"/local/domain/{domid}/device"))
        refs = entries.refs if entries else frozenset()
        live = {ref: word for ref, word in found.items() if ref in refs}
        self._remembered.setdefault(domid, {}).update(live)
        return live


def _risen(before: tuple[Memory, ...], after: tuple[Memory, ...]) -> Iterator[Growth]:
    known = {each.owner: each for each in before}
    for each in after:
        yield from memory.risen(known.get(each.owner, Memory(each.owner, {})), each)
