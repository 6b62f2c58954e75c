"""A domU that moves leaves no grant behind, and takes none along."""

from __future__ import annotations

import pytest

from emu.rig import Ledger, RigHost, RigLun
from emu.rig.verifying import Load

PVH = pytest.mark.stack(domu="pvh")
LAB_PV = pytest.mark.stack(kernel="lab", domu_memory=64)
LAB_PVH = pytest.mark.stack(domu="pvh", kernel="lab", domu_memory=64)
NEWER = pytest.mark.stack(kernel="debian-6.12")


@pytest.mark.parametrize(
    "kind",
    [pytest.param("pv", marks=LAB_PV), pytest.param("pvh", marks=[PVH, pytest.mark.long])],
)
def test_restored_with_a_smaller_ring(
    host: RigHost, lun: RigLun, ledger: Ledger, kind: str
) -> None:
    """The domain is another, its references too; what it grants is what it granted before."""
    domu = host.create(ring_pages=16)
    with ledger.unchanged():
        domu.attach(lun)
        written = domu.fill(lun, mib=1)
        ledger.look()
        domu.save_and_restore(max_ring_pages=2)
        ledger.look()
        assert domu.ring(lun).pages == 2
        assert domu.sum(lun, mib=1) == written
        domu.detach(lun)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_restored_again_and_again(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """Neither kernel keeps anything of a ring that was left behind."""
    domu = host.create(disk=lun, ring_pages=16, back_parameters={"feature_persistent": 0})
    for cycle in ledger.cycles(6):
        domu.save_and_restore(max_ring_pages=2 if cycle % 2 else 16)
        domu.fill(lun, mib=1)
        domu.save_and_restore(max_ring_pages=16)
        ledger.look()


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "kind",
    ["pv", pytest.param("lab pvh", marks=LAB_PVH), pytest.param("newer kernel", marks=NEWER)],
)
def test_attached_restored_and_detached_again_and_again(
    host: RigHost, lun: RigLun, ledger: Ledger, kind: str
) -> None:
    """With requests under way at each restore; what the console's driver leaves is known."""
    domu = host.create(ring_pages=64, max_ring_pages=64)
    for _ in ledger.cycles(6):
        domu.attach(lun)
        with domu.verifying_io(64, load=Load(rate=15)) as io:
            io.await_answers(10)
            domu.save_and_restore(max_ring_pages=64)
            io.await_answers(100)
        domu.detach(lun)
