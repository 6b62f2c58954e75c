"""A disk ends, however it does: neither kernel keeps anything of it.

Threads, interrupts, devices, debugfs, xenstore, opens of the LUN, uses of the modules. Grants and
memory are in grants/.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kept import OPEN, Kept, kept, more_than

from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.rig.keys import FrontEndKeys

READ = "dd if=/dev/xvda of=/dev/null bs=4k count=1 skip={} iflag=direct"
HELD = 8
SHOWN = (
    "dom0: kernel thread",
    "dom0: interrupt",
    "dom0: device",
    "dom0: directory in debugfs",
    "dom0: key",
    "dom0: use of xen_blkback",
    "disk xvda",
    "directory in debugfs vbd-",
    "interrupt blkif",
    "use of xen_blkfront",
)
"""What there is of a connected disk."""
NO_GRANT = {"event-channel": 1, "ring-ref": 4000000000}


def detach(domu: RigDomu, before: Kept) -> None:
    domu.detach()


def force_detach(domu: RigDomu, before: Kept) -> None:
    domu.force_detach()
    domu.wait_gone()


def unbind_front(domu: RigDomu, before: Kept) -> None:
    domu.unbind_front()
    domu.detach()
    domu.load_front(max_ring_pages=4)


def unbind_back(domu: RigDomu, before: Kept) -> None:
    """dom0 has let go of all but the device and its keys as soon as its driver is unbound."""
    domu.unbind_back()
    left = [line for line in kept(domu.host) - before if " key " not in line]
    device = [f"dom0: device {domu.device('back')}"]
    assert left == device, f"dom0 keeps {left} of a disk without a driver"
    domu.bind_back()
    domu.wait_connected()
    domu.detach()


def detach_with_requests_held(domu: RigDomu, before: Kept) -> None:
    """dom0 lets go of what the LUN may still write to when that has answered."""
    lun = domu.lun()
    opens = (kept(domu.host) - before)[OPEN]
    with lun.held():
        readers = [domu.channel.spawn(READ.format(number * 64)) for number in range(HELD)]
        domu.wait_outstanding(HELD)
        domu.detach()
        now = (kept(domu.host) - before)[OPEN]
        assert now == opens, "dom0 has closed the LUN while that works for the disk"
    for reader in readers:
        reader.wait(30)


def restore_and_detach(domu: RigDomu, before: Kept) -> None:
    domu.save_and_restore()
    domu.detach()


ENDS: tuple[Callable[[RigDomu, Kept], None], ...] = (
    detach,
    force_detach,
    unbind_front,
    unbind_back,
    detach_with_requests_held,
    restore_and_detach,
)


@pytest.mark.stack(domu_memory=128)
def test_disk_that_ends_leaves_nothing(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    domu = host.create(ring_pages=4)
    wrong: dict[str, object] = {}
    with ledger.unchanged():
        before = kept(host, domu)
        for end in ENDS:
            name = end.__name__.replace("_", " ")
            domu.attach(lun)
            domu.fill()
            ledger.look()
            seen = kept(host, domu) - before
            unseen = [word for word in SHOWN if not any(word in line for line in seen)]
            assert not unseen, f"a connected disk shows no {unseen}: a leak would not show either"
            end(domu, before)
            if left := more_than(before, host, domu):
                wrong[name] = left
    assert not wrong, "what is kept of a disk that is gone:\n" + "\n".join(
        f"after {name}: {what}" for name, what in wrong.items()
    )


def test_refused_disk_leaves_nothing(host: RigHost, lun: RigLun) -> None:
    """Its front end never comes up; the tool stack gives up."""
    domu = host.create(front=None)
    before = kept(host)
    domu.offer(lun)
    front = FrontEndKeys(domu)
    front.publish(NO_GRANT)
    front.refusal()
    threads = [line for line in kept(host) - before if "thread" in line or "interrupt" in line]
    assert not threads, f"a connection that was refused keeps {threads}"
    front.set_state("Closed")
    domu.force_detach()
    left = more_than(before, host)
    assert not left, f"what is kept of a disk that was refused: {left}"


@pytest.mark.parametrize(
    "ends", [("power off", "destroy"), pytest.param(("crash",), marks=pytest.mark.long)], ids=str
)
def test_domain_that_ends_leaves_nothing(host: RigHost, lun: RigLun, ends: tuple[str, ...]) -> None:
    domu = host.create(ring_pages=4)
    before = kept(host)
    wrong: dict[str, object] = {}
    for end in ends:
        domu.attach(lun)
        domu.fill()
        name = domu.name
        if end == "power off":
            domu.power_off()
        elif end == "destroy":
            domu.destroy()
        else:
            with host.stack.machine.watch.expect_finding("kernel panic", guest=name):
                domu.channel.spawn("echo c > /proc/sysrq-trigger")
            domu.domain.close()
            domu.destroy()
        if left := more_than(before, host):
            wrong[end] = left
        if end != ends[-1]:
            domu = host.create(ring_pages=4, memory=128)
    assert not wrong, "what dom0 keeps of a domain that is gone:\n" + "\n".join(
        f"after {end}: {what}" for end, what in wrong.items()
    )
