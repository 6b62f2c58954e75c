"""Nothing leaks: neither a grant, nor a page, an object, a thread or an interrupt a cycle."""

from __future__ import annotations

import pytest

from emu.lab.rig import Ledger, RigHost, RigLun


@pytest.mark.parametrize(
    ("cycles", "pages"),
    [
        pytest.param(5, 16, id="5 cycles, 16 pages"),
        pytest.param(
            50,
            64,
            id="50 cycles, 64 pages",
            marks=[pytest.mark.long, pytest.mark.stack(kernel="lab")],
        ),
    ],
)
def test_attach_and_detach(
    host: RigHost, lun: RigLun, ledger: Ledger, cycles: int, pages: int
) -> None:
    domu = host.create(ring_pages=pages)
    for _ in ledger.cycles(cycles):
        assert domu.attach(lun).pages == pages
        domu.fill(lun)
        ledger.look()
        domu.detach(lun)
