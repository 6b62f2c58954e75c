"""A domU is destroyed while it starts, or while its disk connects: nothing is kept of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kept import kept, more_than

from emu.rig import FIRST_DISK, Ledger, RigDomu, RigHost, RigLun

SCRIPT = b"""#!/bin/sh
[ "$1" = add ] && until [ -e /run/go ]; do sleep 0.1; done
exec /etc/xen/scripts/block-emu "$@"
"""
"""A hotplug script that is slow: the back end has no device until /run/go is there."""
GIVEN_UP_WITHIN = 30.0


def booting(host: RigHost, lun: RigLun) -> str:
    domu = host.start(disk=lun)
    states = between(domu)
    domu.destroy()
    return states


def disk_not_looked_at(host: RigHost, lun: RigLun) -> str:
    domu = host.create(memory=64)
    with domu.paused():
        domu.offer(lun)
        states = between(domu)
        domu.destroy()
    return states


def script_runs(host: RigHost, lun: RigLun) -> str:
    """The script ends after the domain, and makes no key of it."""
    domu = host.create(memory=64)
    with host.dom0.spawn(slow_attach(domu, lun)) as xl:
        domu.wait_front("Initialised")
        states = between(domu)
        domu.destroy()
        host.dom0.run("touch /run/go", timeout=20)
        xl.wait(GIVEN_UP_WITHIN)
    return states


def connected_at_one_end(host: RigHost, lun: RigLun) -> str:
    domu = host.create(memory=64)
    with host.dom0.spawn(slow_attach(domu, lun)) as xl:
        domu.wait_front("Initialised")
        with domu.paused():
            host.dom0.run("touch /run/go", timeout=20)
            xl.wait(GIVEN_UP_WITHIN)
            domu.wait_back("Connected")
            states = between(domu)
            domu.destroy()
    return states


MOMENTS: dict[Callable[[RigHost, RigLun], str], str] = {
    booting: "Initialising, InitWait",
    disk_not_looked_at: "Initialising, InitWait",
    script_runs: "Initialised, InitWait",
    connected_at_one_end: "Initialised, Connected",
}
"""How to destroy a domU at a moment, and the states of its disk's front and back end then."""


def between(domu: RigDomu) -> str:
    """The states that both ends of the disk are in."""
    return f"{domu.domain.front_tree().state()}, {domu.domain.back_tree().state()}"


def slow_attach(domu: RigDomu, lun: RigLun) -> list[str]:
    """xl's words to give it the LUN by the slow script."""
    domu.host.dom0.put(SCRIPT, "/etc/xen/scripts/block-slow", 0o755)
    domu.host.dom0.run("rm -f /run/go", timeout=20)
    disk = f"phy:{lun.device},{FIRST_DISK},w,script=block-slow"
    return ["xl", "block-attach", str(domu.domain.domid), disk]


@pytest.mark.stack(kernel="lab", domu_memory=64)
def test_domu_destroyed_while_it_starts_leaves_nothing(
    host: RigHost, lun: RigLun, ledger: Ledger
) -> None:
    host.create()
    before = kept(host)
    wrong: dict[str, object] = {}
    with ledger.unchanged():
        for moment, meant in MOMENTS.items():
            name = moment.__name__.replace("_", " ")
            states = moment(host, lun)
            assert states == meant, f"{name}: the ends were {states} when the domU was destroyed"
            left = more_than(before, host)
            for root in ("/local/domain", "/libxl"):
                domids = set(host.xen.xenstore(root).children()) - {"0", "1"}
                left += [f"{root}/{domid}" for domid in domids]
            tables = [table.domid for table in host.xen.grants().tables]
            if tables != [0, 1]:
                left.append(f"grant tables of the domains {tables}")
            if left:
                wrong[name] = left
        assert not wrong, "what is kept of a domU that was destroyed while it started:\n" + (
            "\n".join(f"{name}: {what}" for name, what in wrong.items())
        )

    other = host.start(memory=64)
    other.wait_booted()
    other.load_front()
    other.attach(lun)
