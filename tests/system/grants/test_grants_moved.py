"""A domU that moves leaves no grant behind, and takes none along."""

from __future__ import annotations

import pytest
from driver_checks import check_holds, check_pages

from emu.rig import Ledger, RigHost, RigLun
from emu.rig.verifying import Load

PVH = pytest.mark.stack(domu="pvh")
LAB_PV = pytest.mark.stack(kernel="lab", domu_memory=64)
LAB_PVH = pytest.mark.stack(domu="pvh", kernel="lab", domu_memory=64)
UNDER_WAY = 64
"""Requests on the ring when the domU is saved."""
NEWER = pytest.mark.stack(kernel="debian-6.12")


@pytest.mark.parametrize(
    "kind",
    [pytest.param("pv", marks=LAB_PV), pytest.param("pvh", marks=[PVH, pytest.mark.long])],
)
def test_restored_with_a_smaller_ring(
    host: RigHost, lun: RigLun, ledger: Ledger, kind: str
) -> None:
    """The domain is another; what it grants is what it granted before."""
    domu = host.create(ring_pages=16)
    with ledger.unchanged():
        domu.attach(lun)
        written = domu.fill(lun, mib=1)
        ledger.look()
        domid = domu.domain.domid
        domu.save_and_restore(max_ring_pages=2)
        assert domu.domain.domid != domid, "it is the same domain: it was not restored"
        ledger.look()
        check_pages(domu.ring(lun), 2)
        check_holds(domu, written, lun, 1)
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
    """With requests under way at each save; what the console's driver leaves is known."""
    domu = host.create(ring_pages=64, max_ring_pages=64)
    for cycle in ledger.cycles(6):
        domu.attach(lun)
        with domu.verifying_io(UNDER_WAY, load=Load(rate=200)) as io:
            io.await_answers(10)
            with lun.held():
                lun.await_outstanding(UNDER_WAY)
                with domu.saving():
                    held = len(lun.outstanding())
                    lun.release()
            domu.restore()
            io.await_answers(100)
        assert held == UNDER_WAY, f"{held} requests lay at the LUN at save {cycle}"
        assert io.ledger, "the I/O was not judged"
        assert io.ledger.repeated, (
            f"of {held} requests that were on the ring at save {cycle} the front end asked for "
            "none again"
        )
        domu.detach(lun)
