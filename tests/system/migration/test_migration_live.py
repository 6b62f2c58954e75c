"""A PVH domU migrates live inside its host; the new connection has another ring.

xl copies its pages while it runs, stops it for the rest, and starts the copy: another domain
with another back end, which follows the limits that were changed in the meantime. The domU
writes and reads all the time, and the answers it got are compared with the LUN's own records.

Of the twelve ways from one of 1, 2, 16, 64 pages to another, one runs that crosses what one page
holds (32 requests); `-m long` runs the others. One that goes down is in test_migration_hosts.py.
"""

from __future__ import annotations

import itertools

import pytest
from migration_checks import check_filled, check_goes_on, check_kept, check_repeated, check_ring

from emu.rig import RigHost, RigLun
from emu.rig.verifying import Load

pytestmark = pytest.mark.stack(domu="pvh", kernel="lab", domu_memory=64)
LOAD = Load(rate=15)
"""What goes on while the guest is copied: every page it changes meanwhile is copied again."""
FILLED = 40
"""Requests: more than a ring of one page holds."""
CHOSEN = [(1, 16)]
CHANGES = [
    pytest.param(
        *change, id="{}-{}".format(*change), marks=[] if change in CHOSEN else pytest.mark.long
    )
    for change in itertools.permutations((1, 2, 16, 64), 2)
]


@pytest.mark.parametrize(("first", "then"), CHANGES)
def test_ring_changes_over_a_live_migration(
    host: RigHost, lun: RigLun, first: int, then: int
) -> None:
    domu = host.create(disk=lun, ring_pages=64, max_ring_pages=first)
    check_ring(domu, first)
    domid = domu.domain.domid
    host.set_back(max_ring_pages=then)
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        with check_goes_on(io):
            domu.migrate()
        assert domu.domain.domid != domid, "it is the same domain: it was not migrated"
        check_ring(domu, then)
        check_filled(lun, domu, FILLED)
        io.await_answers(30)
    check_repeated(io, 64)
    tables = {table.domid: table.grants for table in host.xen.grants().tables}
    assert not tables.get(domid), f"dom0 still maps pages of domain {domid}, which has moved"


def test_requests_on_a_full_ring_are_done(host: RigHost, lun: RigLun) -> None:
    """All 64 requests that a ring of 2 pages holds lie at the LUN when the guest is stopped."""
    domu = host.create(disk=lun, ring_pages=16, max_ring_pages=2)
    host.set_back(max_ring_pages=1)
    with domu.verifying_io(outstanding=80) as io, lun.held():
        lun.await_outstanding(64)
        with domu.migrating() as move:
            move.wait_suspended()
            assert not move.ended, "the guest was not seen stopped: its migration was over before"
            lun.release()
        check_ring(domu, 1)
        io.await_answers(30)
    check_repeated(io, 64)
    assert io.ledger, "the I/O was not judged"
    assert io.ledger.repeated, "nothing that was on the ring was asked for again"


@pytest.mark.long
@pytest.mark.stack(domu_vcpus=2)
def test_disk_follows_changed_parameters(host: RigHost, lun: RigLun) -> None:
    """The second queue and persistent grants go with one move and come back with the next."""
    domu = host.create(
        disk=lun,
        ring_pages=4,
        front_parameters={"max_queues": 2},
        back_parameters={"max_queues": 2},
    )
    check_ring(domu, 4, queues=2)
    check_kept(domu, persistent=True)
    host.set_back(max_queues=1, feature_persistent=0)
    domu.migrate()
    check_ring(domu, 4, queues=1)
    check_kept(domu, persistent=False)
    host.set_back(max_queues=2, feature_persistent=1)
    domu.migrate()
    check_ring(domu, 4, queues=2)
    check_kept(domu, persistent=True)
