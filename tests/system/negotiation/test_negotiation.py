"""Ring negotiation: what both ends agree on, over all that a pairing of drivers can differ in.

A back end offers a ring in either of two keys, both, or none: `max-ring-page-order` is Linux',
`max-ring-pages` other systems'. A front end takes the largest it understands and can use.

All there is would be 7 × 4 × 2 × 2 × 3 × 2 = 672 pairings. Run are enough that every two
values of different columns meet once (28); `-m long` runs the rest of the whole.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import astuple, dataclass
from typing import get_args

import pytest
from allpairspy import AllPairs
from driver_checks import check_data, check_holds

from emu.rig import RigHost, RigLun
from emu.rig.keys import Keys, offer

STOCK, PATCHED = "stock", "patched"
PAGES = (1, 2, 4, 8, 16, 32, 64)
LARGEST_OF_DEBIAN = 16
STOCK_FRONT_FITS = 32
"""Pages; a stock front end takes 270 MiB for a ring of 64, more than the domU has."""
PERSISTENT = ("on", "off in front", "off in back")


@dataclass(frozen=True)
class Pairing:
    """Two ends, and the keys that the ring is negotiated in."""

    pages: int
    keys: Keys
    front: str
    back: str
    persistent: str
    domu: str

    @property
    def agreed(self) -> int:
        """Pages of the ring that must come of it: a stock front end knows the order alone."""
        understood = {"order", "both"} | ({"pages"} if self.front == PATCHED else set())
        return self.pages if self.keys in understood else 1

    @property
    def asked(self) -> int:
        """Pages that the front end would take at most: all that its kernel allows it."""
        most = PAGES[-1] if self.pages > LARGEST_OF_DEBIAN else LARGEST_OF_DEBIAN
        return most if self.front == PATCHED else min(most, STOCK_FRONT_FITS)

    def __str__(self) -> str:
        return (
            f"{self.pages} in {self.keys}, {self.front} front, {self.back} back, "
            f"persistent {self.persistent}, {self.domu}"
        )


COLUMNS = (PAGES, get_args(Keys), (STOCK, PATCHED), (STOCK, PATCHED), PERSISTENT, ("pv", "pvh"))


def possible(row: list[object] | tuple[object, ...]) -> bool:
    """Whether a pairing, or the beginning of one, can be had."""
    return len(row) < 3 or not (row[2] == STOCK and int(str(row[0])) > STOCK_FRONT_FITS)


WHOLE = tuple(Pairing(*row) for row in itertools.product(*COLUMNS) if possible(row))
Value = tuple[int, object]
"""A column's number, and its value."""


def met(one: Pairing) -> set[tuple[Value, Value]]:
    """Every two values of different columns that a pairing brings together."""
    return set(itertools.combinations(enumerate(astuple(one)), 2))


EVERY_TWO = set().union(*map(met, WHOLE))


def chosen() -> list[Pairing]:
    """Enough that all that can meet does.

    AllPairs ends where the row that it is at can't be completed, and may leave some unmet.
    Those get a row each time that brings most of them together, of values seldom had.
    """
    rows = [Pairing(*row) for row in AllPairs(COLUMNS, filter_func=possible)]
    often = Counter(two for one in rows for two in met(one))
    while unmet := EVERY_TWO - often.keys():
        new = [len(met(one) & unmet) for one in WHOLE]
        best = [one for one, count in zip(WHOLE, new, strict=True) if count == max(new)]
        rows.append(min(best, key=lambda one: sum(often[two] for two in met(one))))
        often.update(met(rows[-1]))
    return rows


def cases() -> list[object]:
    first = chosen()
    rest = [_case(one, pytest.mark.long) for one in WHOLE if one not in first]
    return [*map(_case, first), *rest]


def _case(one: Pairing, *marks: pytest.MarkDecorator) -> object:
    asked: dict[str, object] = {"domu": one.domu}
    if one.pages > LARGEST_OF_DEBIAN:
        asked["kernel"] = "lab"
    return pytest.param(one, id=str(one), marks=[pytest.mark.stack(**asked), *marks])


def test_any_two_values_meet_by_default() -> None:
    """What `-m long` adds are pairings, and no two values that were not seen together before."""
    unmet = EVERY_TWO.difference(*map(met, chosen()))
    assert not unmet, "never run together by default"


@pytest.mark.parametrize("pairing", cases())
def test_pairing(host: RigHost, lun: RigLun, pairing: Pairing) -> None:
    off = {"feature_persistent": 0}
    domu = host.create(
        front=None,
        back=pairing.back,
        max_ring_pages=pairing.pages,
        back_parameters=off if pairing.persistent == "off in back" else {},
    )
    before = host.xen.grants().of(domu.domain.domid)
    disk = domu.offer(lun)
    offer(domu, disk, pairing.keys, pairing.pages)
    limit = host.limit("front", pairing.asked, pairing.front)
    if pairing.persistent == "off in front":
        limit.update(off)
    domu.load_front(pairing.front, **limit)

    ring = domu.wait_connected(lun)
    assert ring.pages == pairing.agreed, "the ends agreed on another ring"
    assert len(ring.refs) == pairing.agreed, "the front end published other references"
    assert list(ring.disagreements()) == [], "the drivers show another ring than the keys"
    assert ring.persistent == (pairing.persistent == "on"), "persistent grants"
    check_data(domu, lun)
    mapped = host.xen.grants().of(domu.domain.domid).refs
    assert mapped >= set(ring.refs), "dom0 does not map every page of the ring"
    domu.detach(lun)
    left = host.xen.grants().of(domu.domain.domid).refs - before.refs
    assert not left, f"dom0 still maps references {sorted(left)} after the detach"


@pytest.mark.quick
def test_two_disks_with_rings_of_their_own(host: RigHost, lun: RigLun) -> None:
    """The limit is each connection's: what was made before keeps the ring it has."""
    domu = host.create(disk=lun, ring_pages=16, max_ring_pages=16)
    written = domu.fill("xvda")
    host.set_back(max_ring_pages=2)
    domu.attach(lun, "xvdb")
    host.set_back(max_ring_pages=8)
    domu.attach(lun, "xvdc")
    rings = [domu.ring(disk).pages for disk in domu.disks]
    assert rings == [16, 2, 8], (
        f"the disks' rings have {rings} pages, where the limit was 16, 2, 8 as they connected"
    )
    refs = [ref for disk in domu.disks for ref in domu.ring(disk).refs]
    assert len(set(refs)) == 26, "two rings share a page"
    for disk in domu.disks:
        check_holds(domu, written, disk)
    domu.detach("xvdb")
    rings = [domu.ring(disk).pages for disk in domu.disks]
    assert rings == [16, 8], f"with the disk between gone the others have {rings} pages, not 16, 8"
    written = domu.fill("xvdc")
    check_holds(domu, written, "xvda", after="to the same LUN as another disk")
