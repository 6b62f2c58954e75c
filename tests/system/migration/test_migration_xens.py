"""A domU migrates between hosts whose Xens differ: to a newer one, as people do.

Everything of the suite differs with it: libxl, xenstored, what serves the LUN's second session.
"""

from __future__ import annotations

import pytest
from migration_checks import check_repeated, check_ring

from emu.rig import RigHost, RigLun
from emu.rig.verifying import Load
from emu.xen.migration import MigrationFailed

TwoHosts = tuple[RigHost, RigHost]
LONG = pytest.mark.long
LOAD = Load(rate=15)
"""What goes on while the guest is copied: every page it changes meanwhile is copied again."""


def case(first: str, then: str, domu: str, *marks: pytest.MarkDecorator) -> object:
    stack = pytest.mark.stack(xen=(first, then), domu=domu, kernel="lab", domu_memory=64)
    return pytest.param(
        first, then, domu == "pvh", marks=[stack, *marks], id=f"{domu}, {first}-{then}"
    )


@pytest.mark.parametrize(
    ("first", "then", "live"),
    [
        case("4.17", "4.20", "pvh"),
        case("4.17", "4.20", "pv", LONG),
        case("4.14", "4.17", "pvh", LONG),
        case("4.14", "4.17", "pv", LONG),
        case("4.14", "4.20", "pvh", LONG),
        case("4.20", "4.17", "pv", LONG),
    ],
)
def test_domu_migrates_to_another_xen(
    two_hosts: TwoHosts, lun: RigLun, first: str, then: str, live: bool
) -> None:
    here, there = two_hosts
    running = [host.xen.info()["xen_version"][:4] for host in two_hosts]
    assert running == [first, then], f"the hosts run Xen {running}"
    domu = here.create(disk=lun, ring_pages=16)
    there.load_back(max_ring_pages=4)
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        domu.migrate(there, live=live)
        check_ring(domu, 4)
        io.await_answers(30)
    check_repeated(io, 64)
    assert [info.name for info in here.xen.list()] == ["Domain-0"], "it is still at its source"
    left = [table.domid for table in here.xen.grants().tables if table.grants]
    assert not left, "the first host's dom0 still maps pages of it"


@LONG
@pytest.mark.stack(xen=("4.20", "4.17"), domu="pvh", kernel="lab", domu_memory=64)
def test_older_xen_refuses_the_state_of_a_pvh_domu(two_hosts: TwoHosts, lun: RigLun) -> None:
    """What 4.20 saves of a local APIC is longer than 4.17 knows; the domU runs on at its source."""
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=16)
    there.load_back()
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        with pytest.raises(MigrationFailed, match="restoring domain: Invalid argument"):
            domu.migrate(there)
        io.await_answers(30)
    assert domu.host is here, "the domU is taken for one of the target's"
    names = [info.name for info in there.xen.list()]
    assert names == ["Domain-0"], f"the target kept a domain that it could not take: {names}"
