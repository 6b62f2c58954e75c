"""A domU migrates from one emulated host to another; the LUN is the same, the back end is not.

A PVH domU goes live. A PV domU is stopped and copied: this Xen has no shadow paging, and so no
way to find the changed pages of a PV guest. The domU writes and reads as long as it runs; the
answers it got are compared with the records of the LUN, which serves both hosts.

Of from × to in {1, 2, 16, 64} pages one case of each kind of domU runs; `-m long` runs the other
eleven for PVH, and five more for PV.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest
from back_ends import back_end
from migration_checks import (
    WITH_INDIRECT,
    WITHOUT,
    check_filled,
    check_goes_on,
    check_kept,
    check_limits,
    check_repeated,
    check_ring,
)

from emu.rig import RigHost, RigLun
from emu.rig.verifying import Load

PVH = pytest.mark.stack(domu="pvh", kernel="lab", domu_memory=64)
PV = pytest.mark.stack(domu="pv", kernel="lab", domu_memory=64)
TwoHosts = tuple[RigHost, RigHost]
LOAD = Load(rate=15)
"""What goes on while the guest is copied: every page it changes meanwhile is copied again."""
FILLED = 40
"""Requests: more than a ring of one page holds."""


def changes(domu: str) -> list[object]:
    """Cases from → to of one kind of domU; all but the first are long."""
    pages = (64, 2, 1, 16) if domu == "pvh" else (1, 16, 64)
    kind = PVH if domu == "pvh" else PV
    return [
        pytest.param(
            domu == "pvh", *change, id=f"{domu}, {change[0]}-{change[1]}",
            marks=[kind, *([pytest.mark.long] if number else [])],
        )
        for number, change in enumerate(itertools.permutations(pages, 2))
    ]  # fmt: skip


@pytest.mark.parametrize(("live", "first", "then"), [*changes("pvh"), *changes("pv")])
def test_ring_is_the_new_hosts(
    two_hosts: TwoHosts, lun: RigLun, live: bool, first: int, then: int
) -> None:
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=64, max_ring_pages=first)
    there.load_back(max_ring_pages=then)
    check_ring(domu, first)
    domid = domu.domain.domid
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        with check_goes_on(io) if live else contextlib.nullcontext():
            domu.migrate(there, live=live)
        check_ring(domu, then)
        check_filled(lun, domu, FILLED)
        io.await_answers(30)
    check_repeated(io, 64)
    assert [info.name for info in here.xen.list()] == ["Domain-0"], "it is still at its source"
    left = [table.domid for table in here.xen.grants().tables if table.grants]
    assert not left, f"the first host's dom0 still maps pages of domain {domid}"


@pytest.mark.long
@PVH
@pytest.mark.stack(domu_vcpus=2)
def test_disk_follows_the_back_end_there_and_back(two_hosts: TwoHosts, lun: RigLun) -> None:
    """Indirect requests, persistent grants and the second queue: not on the second host."""
    here, there = two_hosts
    two = {"max_queues": 2}
    domu = here.create(disk=lun, ring_pages=4, front_parameters=two, back_parameters=two)
    there.load_back(back_end(there, "no-indirect"), max_queues=1, feature_persistent=0)
    check_ring(domu, 4, queues=2)
    check_limits(domu, WITH_INDIRECT)
    check_kept(domu, persistent=True)

    # 64 KiB are 16 segments: one request where there are indirect ones, else two.
    with domu.verifying_io(16, load=Load(size=65536, rate=50)) as io:
        io.await_answers(10)
        domu.migrate(there)
        check_ring(domu, 4, queues=1)
        check_limits(domu, WITHOUT)
        io.await_answers(10)
    check_kept(domu, persistent=False)
    with domu.verifying_io(16, load=Load(size=65536, rate=50)) as io:
        io.await_answers(10)
        domu.migrate(here)
        check_ring(domu, 4, queues=2)
        check_limits(domu, WITH_INDIRECT)
        io.await_answers(10)
    check_kept(domu, persistent=True)


@pytest.mark.parametrize(
    ("live", "first", "then"),
    [
        pytest.param(True, 2, 1, marks=PVH, id="pvh, 2-1"),
        pytest.param(True, 1, 2, marks=[PVH, pytest.mark.long], id="pvh, 1-2"),
        pytest.param(False, 2, 1, marks=[PV, pytest.mark.long], id="pv, 2-1"),
        pytest.param(False, 1, 2, marks=[PV, pytest.mark.long], id="pv, 1-2"),
    ],
)
def test_requests_on_a_full_ring_are_done(
    two_hosts: TwoHosts, lun: RigLun, live: bool, first: int, then: int
) -> None:
    """The old ring is full of requests that lie at the LUN when the guest is stopped."""
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=16, max_ring_pages=first)
    there.load_back(max_ring_pages=then)
    with domu.verifying_io(outstanding=80) as io, lun.held():
        lun.await_outstanding(32 * first)
        with domu.migrating(there, live=live) as move:
            move.wait_suspended()
            assert not move.ended, "the guest was not seen stopped: its migration was over before"
            lun.release()
        check_ring(domu, then)
        io.await_answers(30)
    check_repeated(io, 32 * first)
    assert io.ledger, "the I/O was not judged"
    assert io.ledger.repeated, "nothing that was on the ring was asked for again"
