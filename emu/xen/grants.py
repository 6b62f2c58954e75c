"""The hypervisor's grant tables, read from what debug key `g` prints.

Xen lists only entries that are mapped at that instant (pin ≠ 0); a reference that a
guest granted and no domain maps does not show. Format: Xen's common/grant_table.c,
gnttab_usage_print().
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from emu.errors import RigError

BEGIN = "gnttab_usage_print_all [ key 'g' pressed"
END = "gnttab_usage_print_all ] done"

DUMP = "emu-grants mapped"
"""What makes Xen print all of it, in dom0. Xen's console ring is empty before and has only that
afterwards; the serial log has it all."""

_TABLE = re.compile(r"grant-table for remote d(\d+) \(v([12])\)")
_FRAMES = re.compile(r"(\d+) frames \((\d+) max\), (\d+) maptrack frames \((\d+) max\)")
_ENTRY = re.compile(
    r"\[0x([0-9a-f]+)\]\s+(\d+) 0x([0-9a-f]+) 0x([0-9a-f]+)\s+(\d+) 0x([0-9a-f]+) 0x([0-9a-f]+)"
)


@dataclass(frozen=True)
class Grant:
    """One grant reference that another domain maps right now.

    `pin` counts the mappings as Xen packs them, eight bits each from the lowest up:
    host-write, host-read, device-write, device-read (GNTPIN_* in common/grant_table.c).
    """

    ref: int
    mapper: int
    mfn: int
    pin: int
    gmfn: int
    flags: int

    @property
    def mappings(self) -> int:
        """How many times the page is mapped, of whatever kind."""
        return sum((self.pin >> shift) & 0xFF for shift in (0, 8, 16, 24))


@dataclass(frozen=True)
class GrantTable:
    """The mapped part of one domain's grant table; `frames` never shrink while it lives."""

    domid: int
    version: int
    frames: int
    max_frames: int
    maptrack_frames: int
    max_maptrack_frames: int
    grants: tuple[Grant, ...]

    def mapped_by(self, domid: int) -> tuple[Grant, ...]:
        """The entries that `domid` maps."""
        return tuple(g for g in self.grants if g.mapper == domid)

    @property
    def refs(self) -> frozenset[int]:
        """The references that are mapped."""
        return frozenset(g.ref for g in self.grants)


@dataclass(frozen=True)
class GrantDump:
    """All domains' grant tables at one instant."""

    tables: tuple[GrantTable, ...]

    def of(self, domid: int) -> GrantTable:
        """The table of `domid`. Raises RigError when the dump has none."""
        for table in self.tables:
            if table.domid == domid:
                return table
        raise RigError(f"the hypervisor's dump has no grant table of domain {domid}")


def parse(lines: Iterable[str]) -> GrantDump:
    """Read the last complete dump in Xen's console ring.

    Raises RigError when there is none (the ring overflowed: see Xen's `conring_size=`).
    """
    last: list[str] | None = None
    current: list[str] | None = None
    for line in lines:
        text = line.removeprefix("(XEN) ")
        if BEGIN in text:
            current = []
        elif END in text and current is not None:
            last, current = current, None
        elif current is not None:
            current.append(text)
    if last is None:
        raise RigError("Xen's console ring holds no complete grant table dump")
    return GrantDump(tuple(_tables(last)))


def _tables(lines: list[str]) -> list[GrantTable]:
    tables: list[GrantTable] = []
    head: tuple[int, int] | None = None
    frames = (0, 0, 0, 0)
    grants: list[Grant] = []

    def close() -> None:
        if head is not None:
            tables.append(GrantTable(*head, *frames, tuple(grants)))

    for line in lines:
        if match := _TABLE.search(line):
            close()
            head, grants = (int(match[1]), int(match[2])), []
        elif match := _FRAMES.search(line):
            frames = (int(match[1]), int(match[2]), int(match[3]), int(match[4]))
        elif match := _ENTRY.search(line):
            ref, mapper, mfn, pin, _owner, gmfn, flags = match.groups()
            grants.append(
                Grant(
                    int(ref, 16),
                    int(mapper),
                    int(mfn, 16),
                    int(pin, 16),
                    int(gmfn, 16),
                    int(flags, 16),
                )
            )
    close()
    return tables
