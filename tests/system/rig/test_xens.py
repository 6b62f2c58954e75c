"""The other Xens: what the rig does with one of them, once on each."""

from __future__ import annotations

import pytest

from emu.rig import Ledger, RigHost, RigLun
from emu.xen import granted


def stack(xen: str, domu: str, kernel: str, *marks: pytest.MarkDecorator) -> object:
    chosen = pytest.mark.stack(xen=xen, domu=domu, kernel=kernel)
    return pytest.param(xen, marks=[chosen, *marks], id=f"{xen}, {kernel}, {domu}")


@pytest.mark.parametrize(
    "xen",
    [
        # What is a module of Debian's kernel is built into ours: dom0's tools must take both.
        stack("4.14", "pv", "lab"),
        stack("4.20", "pv", "debian"),
        stack("4.14", "pvh", "debian", pytest.mark.long),
        stack("4.20", "pvh", "lab", pytest.mark.long),
    ],
)
def test_disk_on_another_xen(host: RigHost, lun: RigLun, ledger: Ledger, xen: str) -> None:
    """Ring, both views of the grants, event channels, requests of the LUN, save and restore."""
    assert host.xen.info()["xen_version"].startswith(f"{xen}.")
    with ledger.unchanged():
        domu = host.create(ring_pages=16)
        domu.attach(lun)
        ring = domu.ring()
        assert (ring.pages, list(ring.disagreements())) == (16, [])
        mapped = host.xen.grants().of(domu.domain.domid)
        table = granted.read_table(host.dom0, domu.domain.domid)
        assert set(ring.refs) <= mapped.refs
        assert table is not None
        assert set(ring.refs) <= table.refs
        with domu.verifying_io(64) as io:
            io.await_answers(30)
            domu.save_and_restore(max_ring_pages=2)
            io.await_answers(30)
        assert domu.ring().pages == 2
        domu.power_off()
