"""A PV domU is saved and restored under a back end that allows another ring, while it works.

What is on the old ring when it is saved, from a ring that is full and with other features, is
test_series_resumed.py's and test_series_moved.py's. Here every change of pages over {1, 2, 16,
64} has verified I/O: one that neither of those has runs, `-m long` runs the other eleven.
"""

from __future__ import annotations

import itertools

import pytest
from migration_checks import check_filled, check_repeated, check_ring

from emu.rig import RigHost, RigLun
from emu.rig.verifying import Load

LOAD = Load(rate=15)
FILLED = 40
"""Requests: more than a ring of one page holds."""
CHOSEN = [(2, 64)]
CHANGES = [
    pytest.param(
        *change, id="{}-{}".format(*change), marks=[] if change in CHOSEN else pytest.mark.long
    )
    for change in itertools.permutations((1, 2, 16, 64), 2)
]


@pytest.mark.stack(kernel="lab", domu_memory=64)
@pytest.mark.parametrize(("first", "then"), CHANGES)
def test_ring_changes_over_a_restore(host: RigHost, lun: RigLun, first: int, then: int) -> None:
    domu = host.create(disk=lun, ring_pages=64, max_ring_pages=first)
    check_ring(domu, first)
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        domu.save_and_restore(max_ring_pages=then)
        check_ring(domu, then)
        check_filled(lun, domu, FILLED)
        io.await_answers(30)
    check_repeated(io, 64)
