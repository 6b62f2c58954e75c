"""The I/O ledger: what the guest was told is done against what the LUN was asked, and holds."""

from __future__ import annotations

from emu.lab.rig import RigHost, RigLun


def test_records_match_what_the_domu_did(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=16)
    with domu.verifying_io(outstanding=128) as io:
        io.await_answers(500)
    print(io.ledger)
    print(io.ledger.summary())
