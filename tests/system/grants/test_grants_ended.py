"""A domU ends, however it does: dom0 maps nothing of it any more, and keeps nothing for it."""

from __future__ import annotations

import pytest

from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.xen import ledger as books

PVH = pytest.mark.stack(domu="pvh")
"""dom0 does the same for both kinds: one case of a default run ends a PVH domU."""
READ = "dd if=/dev/xvda of=/dev/null bs=4k count=1 skip={} iflag=direct"
KINDS = ["pv", pytest.param("pvh", marks=[PVH, pytest.mark.long])]


def connected(host: RigHost, lun: RigLun, ledger: Ledger, pages: int = 16) -> RigDomu:
    """A disk whose ring was used, so that data pages stay granted."""
    domu = host.create(ring_pages=pages)
    domu.attach(lun)
    domu.fill(lun, mib=1)
    ledger.look()
    assert domu.data_refs(), "no data page stays granted between requests: nothing can be left"
    return domu


@pytest.mark.parametrize(
    "kind", [pytest.param("pv", marks=pytest.mark.quick), pytest.param("pvh", marks=PVH)]
)
def test_shut_down(host: RigHost, lun: RigLun, ledger: Ledger, kind: str) -> None:
    with ledger.unchanged():
        domu = connected(host, lun, ledger)
        domu.power_off()


def test_destroyed_with_requests_held(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """Its pages stay as long as the LUN may still write to them, and not a moment longer."""
    with ledger.unchanged():
        domu = connected(host, lun, ledger)
        before = ledger.take()
        with lun.held():
            for number in range(8):
                domu.channel.spawn(READ.format(number * 64))
            domu.wait_outstanding(8)
            domu.domain.close()
            host.dom0.spawn(["xl", "destroy", domu.name])
            domu.wait_ended()
            left = ledger.compare(before, ledger.take())
        mapped = [each for each in left.grants if each.after == books.ONLY_MAPPED]
        assert mapped, "dom0 unmapped pages that its LUN was reading into"
        mappers = {each.mappers for each in mapped}
        assert mappers == {(0,)}, f"pages of a domain that ends are mapped by domains {mappers}"


@pytest.mark.parametrize("kind", KINDS)
def test_crashed(host: RigHost, lun: RigLun, ledger: Ledger, kind: str) -> None:
    """A crashed domU is kept to be looked at, and everything with it, until it is destroyed."""
    with ledger.unchanged():
        domu = connected(host, lun, ledger)
        with host.stack.machine.watch.expect_finding("kernel panic", guest=domu.name):
            domu.channel.spawn("echo c > /proc/sysrq-trigger")
        domu.domain.close()
        state = domu.domain.back_tree().state()
        assert state == "Connected", f"the back end of a crashed domU that is kept is in {state}"
        assert domu.mapped_refs(), "dom0 has unmapped the pages of a crashed domU that is kept"
        domu.destroy()


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("end", ["power off", "destroy"])
def test_one_domu_after_the_other(host: RigHost, lun: RigLun, ledger: Ledger, end: str) -> None:
    """dom0 holds nothing for domains that are gone, neither pages nor objects."""
    connected(host, lun, ledger).destroy()
    for _ in ledger.cycles(5):
        domu = connected(host, lun, ledger)
        domu.power_off() if end == "power off" else domu.destroy()
