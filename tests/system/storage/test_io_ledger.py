"""The I/O ledger: the answers that the guest got against what the LUN was asked, and holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from driver_checks import check_pages

from emu.errors import NotHeld
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.verifying import Load, VerifyingIo
from emu.xen.ioledger import IoLedger
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
    ledger, records = judged(io), io.records()
    counts = (ledger.acknowledged, ledger.verified)
    assert counts[0] > 250, f"of 500 answers {counts[0]} were to writes, {counts[1]} verified"
    assert counts[1] > 50, f"of 500 answers {counts[0]} were to writes, {counts[1]} verified"
    assert not ledger.repeated, f"requests came to the LUN more than once: {ledger.repeated}"
    assert not ledger.in_flight, f"requests were not answered: {ledger.in_flight}"
    # Every request of 4 KiB came by itself: there is nothing to merge, and nothing was split.
    writes = sum(request.writes for request in records)
    assert writes == ledger.acknowledged, (
        f"the LUN was asked for {writes} writes, the guest got answers to {ledger.acknowledged}"
    )
    sizes = {request.blocks for request in records.writes}
    assert sizes == {8}, f"writes of 8 sectors came to the LUN as {sizes}"


def judged(io: VerifyingIo) -> IoLedger:
    """The outcome of I/O that has ended."""
    assert io.ledger is not None, "the I/O was not judged"
    return io.ledger


def named(differs: pytest.ExceptionInfo[NotHeld], *words: str) -> None:
    """The ledger's complaint names what was done to the LUN."""
    missing = [word for word in words if word not in str(differs.value)]
    assert not missing, f"the ledger does not say {missing}: {differs.value}"


def spoil(domu: RigDomu, act: Callable[[], object]) -> None:
    """Verified I/O, with something done to the LUN half-way that no LUN may do."""
    with domu.verifying_io(outstanding=16, load=FEW) as io:
        io.await_answers(100)
        act()
        io.await_answers(200)


def test_lost_write_is_reported(domu: RigDomu, lun: RigLun) -> None:
    with pytest.raises(NotHeld, match="but the LUN differs: 1 lost") as differs:
        spoil(domu, lambda: lun.drop(first=5 * SECTORS_APART, blocks=8))
    named(differs, "block 5 ", "0 of 8 sectors written")


def test_torn_write_is_reported(domu: RigDomu, lun: RigLun) -> None:
    with pytest.raises(NotHeld, match="but the LUN differs: 1 torn") as differs:
        spoil(domu, lambda: lun.tear(3, first=7 * SECTORS_APART, blocks=8))
    named(differs, "block 7 ", "in sectors 0–2", "in sectors 3–7")


def test_write_of_another_is_reported(domu: RigDomu, lun: RigLun) -> None:
    zeros = f"dd if=/dev/zero of={lun.device} bs=4k seek=3 count=1 oflag=direct"
    with pytest.raises(NotHeld, match="but the LUN differs: 1 unasked") as differs:
        spoil(domu, lambda: domu.host.dom0.run(zeros, timeout=20))
    named(differs, "the guest did not ask for that place at blocks 24–31")


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
    again = judged(io).repeated
    lost = set(before) - {each.asked.block * SECTORS_APART for each in again}
    assert not lost, (
        f"of {len(before)} writes in flight when the guest was saved those of sectors "
        f"{sorted(lost)} were not asked for again"
    )
    times = {each.times for each in again}
    assert times == {2}, f"writes in flight at a save came to the LUN {times} times, not twice"


# In 64 MiB an eighth of the memory, which grants may take, is not enough for 2048 requests.
@pytest.mark.stack(kernel="lab", domu_memory=128)
def test_full_ring_shrinks_over_a_restore(host: RigHost, lun: RigLun) -> None:
    """More requests than the LUN is asked at a time: the others wait in dom0, on the ring."""
    domu = host.create(disk=lun, ring_pages=64, max_ring_pages=64)
    with domu.verifying_io(outstanding=2048) as io:
        with lun.held():
            lun.await_outstanding(COMMANDS)
            domu.wait_outstanding(2048)
            host.set_back(max_ring_pages=2)
            with domu.saving():
                lun.release()
        domu.restore()
        check_pages(domu.ring(lun), 2)
        io.await_answers(2048)
    again = len(judged(io).repeated)
    assert again > COMMANDS / 2, (
        f"{again} writes were asked for again, of {COMMANDS} requests that lay at the LUN"
    )
