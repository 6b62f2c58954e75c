"""A migration that fails at its target leaves the guest at its source, running, with its I/O.

It writes and reads while that happens. Its requests are done over the connection that they were
asked for on, and none is asked for twice. What the target had of the guest is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from driver_checks import check_pages

from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.verifying import Load
from emu.xen import sharing
from emu.xen.config import DomuConfig
from emu.xen.migration import MigrationFailed

PVH = pytest.mark.stack(domu="pvh", kernel="lab", domu_memory=64)
PV = pytest.mark.stack(domu="pv", kernel="lab", domu_memory=64)
LONG = pytest.mark.long
TwoHosts = tuple[RigHost, RigHost]
LOAD = Load(rate=15)
"""What goes on while the guest is copied: every page it changes meanwhile is copied again."""
PART_MIB = 16
"""MiB at the target: a look takes long on a busy machine, and the rest goes on meanwhile."""
HALF_MIB = 32


def has(host: RigHost) -> dict[str, int]:
    """The domains of a host, and how many of its pages dom0 maps of each."""
    tables = {table.domid: len(table.grants) for table in host.xen.grants().tables}
    return {info.name: tables.get(info.domid, 0) for info in host.xen.list()}


@contextlib.contextmanager
def stays(domu: RigDomu, there: RigHost, message: str | None = None) -> Iterator[None]:
    """The body's migration fails with `message`; the domU goes on with all that it had."""
    here, ring, domid, before = domu.host, domu.ring(), domu.domain.domid, has(there)
    with domu.verifying_io(64, load=LOAD) as io:
        io.await_answers(10)
        with pytest.raises(MigrationFailed, match=message):
            yield
        io.await_answers(30)
        info = here.xen.domain_info(domu.name)
        assert domu.host is here, "the domU is taken for one of the target's"
        assert info.domid == domid, "another domain runs at the source"
        assert not set(info.state) & set("psc"), f"the domU does not run: {info.state}"
        now = domu.ring()
        assert now.connected, f"front end {now.front_state}, back end {now.back_state}"
        assert now.refs == ring.refs, "the disk was connected anew"
    assert io.ledger, "the I/O was not judged"
    assert not io.ledger.repeated, "requests were asked for twice"
    assert has(there) == before, "the target kept a part: domains, and what dom0 maps of them"


@pytest.mark.parametrize(
    ("live", "when"),
    [
        pytest.param(True, "half-way", marks=[PVH, LONG], id="pvh, half-way"),
        pytest.param(True, "at the end", marks=PVH, id="pvh, at the end"),
        pytest.param(False, "half-way", marks=PV, id="pv, half-way"),
        pytest.param(False, "at the end", marks=[PV, LONG], id="pv, at the end"),
    ],
)
def test_receiver_dies(two_hosts: TwoHosts, lun: RigLun, live: bool, when: str) -> None:
    """While pages are copied, or when the guest is suspended and its source waits to destroy it."""
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=2)
    there.load_back()
    with stays(domu, there), domu.migrating(there, live=live) as move:
        if when == "half-way":
            move.wait_copied(PART_MIB)
        else:
            move.wait_suspended()
        assert not move.ended, f"the migration was over before its receiver was killed ({when})"
        move.end_receiver()


@PVH
def test_target_is_out_of_memory(two_hosts: TwoHosts, lun: RigLun) -> None:
    """Xen there has half of what the guest needs: it is refused while its pages come in."""
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=2)
    there.load_back()
    free = int(there.xen.info()["free_memory"])
    big = DomuConfig(name="big", kind="pvh", memory=free - HALF_MIB)
    there.dom0.put(big.render(there.xen.xen_release).encode(), "/run/big.cfg")
    there.xen.xl("create", "-p", "/run/big.cfg", timeout=120)
    with stays(domu, there, "Failed to populate pfns"):
        domu.migrate(there)


@pytest.mark.long
@PVH
def test_target_lacks_the_lun(two_hosts: TwoHosts, lun: RigLun) -> None:
    """Its back end can't be made. With the LUN there again, the guest migrates."""
    here, there = two_hosts
    domu = here.create(disk=lun, ring_pages=16)
    there.load_back(max_ring_pages=2)
    sharing.log_out(there.dom0, lun.lun)
    with stays(domu, there, f"{lun.device} is not a block device"):
        domu.migrate(there)
    sharing.log_in(there.dom0, lun.lun)
    with domu.verifying_io(64, load=LOAD) as io:
        domu.migrate(there)
        io.await_answers(30)
    check_pages(domu.ring(), 2)
