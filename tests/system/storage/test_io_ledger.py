"""The I/O ledger: the answers that the guest got against what the LUN was asked, and holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.errors import NotHeld
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.verifying import Load
from emu.xen.lun import COMMANDS

FEW = Load(blocks=24, reads=0)
"""Every block is written again and again while a test looks on."""
SECTORS_APART = 16
"""Blocks of 4 KiB with a gap of as much, in sectors."""


@pytest.fixture
def domu(host: RigHost, lun: RigLun) -> RigDomu:
    """A domU with the LUN as its disk."""
    return host.create(disk=lun, ring_pages=16)


def test_records_match_what_the_domu_did(domu: RigDomu, lun: RigLun) -> None:
    with domu.verifying_io(outstanding=128) as io:
        io.await_answers(500)
    ledger, records = io.ledger, io.records()
    assert ledger is not None
    assert ledger.acknowledged > 250
    assert ledger.verified > 50
    assert not ledger.repeated
    assert not ledger.in_flight
    # Every request of 4 KiB came by itself: there is nothing to merge, and nothing was split.
    assert sum(request.writes for request in records) == ledger.acknowledged
    assert {request.blocks for request in records.writes} == {8}


def spoil(domu: RigDomu, act: Callable[[], object]) -> None:
    """Verified I/O, with something done to the LUN half-way that no LUN may do."""
    with domu.verifying_io(outstanding=16, load=FEW) as io:
        io.await_answers(100)
        act()
        io.await_answers(200)


def test_lost_write_is_reported(domu: RigDomu, lun: RigLun) -> None:
    with pytest.raises(NotHeld, match="but the LUN differs: 1 lost") as differs:
        spoil(domu, lambda: lun.drop(first=5 * SECTORS_APART, blocks=8))
    assert "block 5 " in str(differs.value)
    assert "0 of 8 sectors written" in str(differs.value)


def test_torn_write_is_reported(domu: RigDomu, lun: RigLun) -> None:
    with pytest.raises(NotHeld, match="but the LUN differs: 1 torn") as differs:
        spoil(domu, lambda: lun.tear(3, first=7 * SECTORS_APART, blocks=8))
    assert "block 7 " in str(differs.value)
    assert "in sectors 0–2" in str(differs.value)
    assert "in sectors 3–7" in str(differs.value)


def test_write_of_another_is_reported(domu: RigDomu, lun: RigLun) -> None:
    zeros = f"dd if=/dev/zero of={lun.device} bs=4k seek=3 count=1 oflag=direct"
    with pytest.raises(NotHeld, match="but the LUN differs: 1 unasked") as differs:
        spoil(domu, lambda: domu.host.dom0.run(zeros, timeout=20))
    assert "the guest did not ask for that place at blocks 24–31" in str(differs.value)


def test_held_requests_survive_save_and_restore(domu: RigDomu, lun: RigLun) -> None:
    with domu.verifying_io(outstanding=200) as io:
        io.await_answers(100)
        with lun.held("writes"):
            lun.await_outstanding(100)
            with domu.saving():
                before = [each.lba for each in lun.outstanding() if each.operation == "write"]
                lun.release()
        domu.restore()
        io.await_answers(300)
    assert io.ledger is not None
    repeated = {each.asked.block * SECTORS_APART for each in io.ledger.repeated}
    assert set(before) <= repeated, "what was in flight when the guest was saved is asked again"
    assert {each.times for each in io.ledger.repeated} == {2}


@pytest.mark.stack(kernel="lab", domu_memory=64)
def test_full_ring_shrinks_over_a_restore(host: RigHost, lun: RigLun) -> None:
    """More requests than the LUN is asked at a time: the others wait in dom0, and in the guest."""
    domu = host.create(disk=lun, ring_pages=64, max_ring_pages=64)
    with domu.verifying_io(outstanding=2048) as io:
        with lun.held():
            lun.await_outstanding(COMMANDS)
            host.set_back(max_ring_pages=2)
            with domu.saving():
                lun.release()
        domu.restore()
        assert domu.ring(lun).pages == 2
        io.await_answers(2048)
    assert io.ledger is not None
    assert len(io.ledger.repeated) > COMMANDS / 2
