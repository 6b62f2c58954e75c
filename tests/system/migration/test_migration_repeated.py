"""Migrations in a row leave nothing behind on either host.

Each round attaches the disk, takes the domU to the other host and back with I/O going on, and
detaches. `-m long` makes it 20 migrations, and looks at memory, too.
"""

from __future__ import annotations

import itertools

import pytest
from migration_checks import check_ring

from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.rig.verifying import Load

pytestmark = pytest.mark.stack(domu="pvh", kernel="lab", domu_memory=64)
TwoHosts = tuple[RigHost, RigHost]
LOAD = Load(rate=15)


def migrate(domu: RigDomu, to: RigHost, pages: int) -> None:
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        domu.migrate(to)
        check_ring(domu, pages)
        io.await_answers(30)


def round_trip(domu: RigDomu, lun: RigLun, one: RigHost, other: RigHost) -> None:
    """To one host, whose back end allows 2 pages, and on to the other, which allows 64."""
    domu.attach(lun)
    migrate(domu, one, 2)
    migrate(domu, other, 64)
    domu.detach(lun)


@pytest.mark.long
def test_three_migrations_leave_nothing(two_hosts: TwoHosts, lun: RigLun) -> None:
    """The first is for what either host allocates for good."""
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=64, max_ring_pages=2)
    there.load_back(max_ring_pages=64)
    migrate(domu, there, 64)
    domu.detach(lun)
    one, other = Ledger(here), Ledger(there)
    with one.unchanged(), other.unchanged():
        round_trip(domu, lun, here, there)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_migrations_leave_nothing(two_hosts: TwoHosts, lun: RigLun) -> None:
    here, there = two_hosts
    domu = here.create(ring_pages=64, max_ring_pages=64)
    there.load_back(max_ring_pages=2)
    one, other = Ledger(here), Ledger(there)
    for _ in itertools.zip_longest(one.cycles(9), other.cycles(9)):
        round_trip(domu, lun, there, here)
