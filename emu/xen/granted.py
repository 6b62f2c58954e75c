"""What a guest has granted, by its own account: its grant table and its kernel's allocator.

The hypervisor's dump (`emu.xen.grants`) shows what is mapped; this is the other view. Both
are read by emu-grants (guest-images/agent/emu-grants.c), on any kernel and any driver: dom0
maps the frames of a domain's table, and a guest reads its allocator's variables from
/proc/kcore. Bits of an entry: Xen's public header grant_table.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from emu.channel.channel import Channel
from emu.errors import RigError

PROGRAM = "/usr/lib/emu/emu-grants"
RESERVED = 8
"""References that no allocator hands out: 0 is the console's, 1 xenstore's."""
NO_DOMAIN = 3
"""Exit status of `emu-grants table` for a domain that Xen does not know, or that is dying."""

_READONLY, _READING, _WRITING = 0x04, 0x08, 0x10


@dataclass(frozen=True)
class Entry:
    """One entry of a grant table: `frame` of the guest is granted to domain `to`."""

    ref: int
    flags: int
    to: int
    frame: int

    @property
    def in_use(self) -> bool:
        """Whether Xen marks it as mapped, or being copied from or to."""
        return bool(self.flags & (_READING | _WRITING))

    @property
    def use(self) -> str:
        """How Xen marks it as used: "read and written", "read", "written" or "not in use"."""
        words = [w for bit, w in ((_READING, "read"), (_WRITING, "written")) if self.flags & bit]
        return " and ".join(words) or "not in use"

    @property
    def readonly(self) -> bool:
        """Whether the other side may not write."""
        return bool(self.flags & _READONLY)


@dataclass(frozen=True)
class Table:
    """All that a domain grants: what it is mapped by or not. Frames never shrink."""

    domid: int
    version: int
    frames: int
    max_frames: int
    entries: tuple[Entry, ...]

    @property
    def refs(self) -> frozenset[int]:
        """The references that grant something."""
        return frozenset(entry.ref for entry in self.entries)


@dataclass(frozen=True)
class GrantAccount:
    """What a guest's kernel has on its references, `size` in all.

    `taken` are those that are not free, None on kernels before 5.19, which keep no map;
    `deferred` were given back while they were mapped, and wait; `leaked`, given up for good
    (None where the kernel does not count them).
    """

    free: int
    size: int
    frames: int
    taken: frozenset[int] | None
    deferred: tuple[int, ...]
    leaked: int | None

    def idle(self, table: Table) -> int:
        """How many references are claimed but grant nothing; of a table read at the same time."""
        used = sum(1 for ref in table.refs if ref >= RESERVED)
        return self.size - RESERVED - self.free - used

    def idle_refs(self, table: Table) -> frozenset[int]:
        """Which they are; empty where the kernel keeps no map."""
        return (self.taken or frozenset()) - table.refs


def _fields(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.splitlines():
        word, *rest = line.split()
        yield word, rest


def parse_table(text: str, domid: int) -> Table:
    """Read what `emu-grants table` printed. Raises RigError for anything of another form."""
    version = frames = most = -1
    entries: list[Entry] = []
    try:
        for word, rest in _fields(text):
            if word == "version":
                version = int(rest[0])
            elif word == "frames":
                frames, most = (int(each) for each in rest)
            elif word == "entry":
                ref, flags, to, frame = (int(each, 0) for each in rest)
                entries.append(Entry(ref, flags, to, frame))
            else:
                raise ValueError(word)
    except (ValueError, IndexError):
        raise RigError("emu-grants table printed what it should not", lines=_tail(text)) from None
    if version not in (1, 2) or frames < 0:
        raise RigError(f"the grant table of domain {domid} has version {version}")
    return Table(domid, version, frames, most, tuple(entries))


def parse_account(text: str) -> GrantAccount:
    """Read what `emu-grants account` printed. Raises RigError for anything of another form."""
    numbers: dict[str, int] = {}
    taken: frozenset[int] | None = None
    deferred: tuple[int, ...] = ()
    try:
        for word, rest in _fields(text):
            if word == "taken":
                taken = frozenset(_ranges(rest))
            elif word == "deferred":
                deferred = tuple(int(each) for each in rest)
            else:
                (numbers[word],) = (int(each) for each in rest)
        free, size, frames = (numbers.pop(name) for name in ("free", "size", "frames"))
    except (ValueError, KeyError):
        raise RigError("emu-grants account printed what it should not", lines=_tail(text)) from None
    return GrantAccount(free, size, frames, taken, deferred, numbers.get("leaked"))


def _ranges(words: Iterable[str]) -> Iterator[int]:
    for word in words:
        first, _, last = word.partition("-")
        yield from range(int(first), int(last) + 1)


def _tail(text: str) -> list[str]:
    return text.splitlines()[-5:]


def read_table(dom0: Channel, domid: int) -> Table | None:
    """What domain `domid` grants right now; None when there is no such domain, or it is dying."""
    answer = dom0.run([PROGRAM, "table", str(domid)], timeout=30, check=False)
    if answer.status == NO_DOMAIN:
        return None
    if answer.status:
        raise _failed("dom0 can't read the grant table", answer.stderr)
    return parse_table(answer.text, domid)


def read_account(guest: Channel) -> GrantAccount:
    """What the guest's kernel has on its references; takes seconds the first time after a boot."""
    answer = guest.run([PROGRAM, "account"], timeout=60, check=False)
    if answer.status:
        raise _failed(f"{guest.name} can't read its kernel's grant references", answer.stderr)
    return parse_account(answer.text)


def _failed(what: str, stderr: bytes) -> RigError:
    return RigError(what, lines=stderr.decode(errors="replace").splitlines()[-3:])
