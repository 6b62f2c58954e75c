"""Three domUs on one dom0 at a time: each moves, loses its disk and ends by itself."""

from __future__ import annotations

import pytest
from kept import kept, more_than

from emu.errors import InputError
from emu.rig import Ledger, RigHost, RigLun
from emu.rig.verifying import Load, VerifyingIo

LOAD = Load(rate=20)
MORE = 5
"""Answers that a domU gets after another one's disk or domain has changed."""


@pytest.mark.stack(kernel="lab", domu_memory=64)
def test_three_domus_are_each_their_own(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    first = host.create(ring_pages=4)
    luns = [host.create_lun(), host.create_lun()]
    for name in ("u1", "u 2", "Domain-0"):
        with pytest.raises(InputError, match="name"):
            host.create(name=name, memory=64)
    free = int(host.xen.info()["free_memory"])
    with pytest.raises(InputError, match=f"{free + 1} MiB does not fit: the host has {free} MiB"):
        host.create(memory=free + 1)
    assert host.domus == [first], "a domU that was refused is counted as one of the host's"

    with ledger.unchanged():
        before = kept(host, first)
        first.attach(lun)
        second = host.create(disk=luns[0], ring_pages=16)
        third = host.create(name="third", disk=luns[1], ring_pages=1)
        names = [info.name for info in host.xen.list()]
        assert names == ["Domain-0", "u1", "u2", "third"], f"the domains are {names}"
        with first.verifying_io(load=LOAD) as io, third.verifying_io(load=LOAD) as other:
            with second.verifying_io(load=LOAD) as moved:
                moved.await_answers(MORE)
                second.save_and_restore(max_ring_pages=2)
                await_all(moved, io, other)
            pages = [domu.ring().pages for domu in (first, second, third)]
            assert pages == [4, 2, 1], f"after the second was restored the rings have {pages} pages"
            second.detach()
            await_all(io, other)
            second.attach(luns[0])
            with second.verifying_io(load=LOAD) as moved:
                await_all(moved, io, other)
            ledger.look()
            domid = second.domain.domid
            second.destroy()
            tables = [table.domid for table in host.xen.grants().tables]
            assert domid not in tables, "Xen keeps the grants of a domain that was destroyed"
            await_all(io, other)
        third.power_off()
        first.detach()
        left = more_than(before, host, first)
        assert not left, f"what is kept of the disks of three domUs: {left}"


def await_all(*going_on: VerifyingIo) -> None:
    """All of them get more answers."""
    for io in going_on:
        io.await_answers(MORE)
