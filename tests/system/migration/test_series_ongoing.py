"""The series: discards that are on the ring while the guest moves.

A module of the test sends them. A process that waits for a request can't be frozen, so that a guest
is not saved with its discards on the ring.
"""

from __future__ import annotations

import guest_modules
import pytest
from back_ends import back_end

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun

pytestmark = pytest.mark.stack(kernel="debian", domu_memory=128, domu_vcpus=2)

SECTORS = 64
ENDS_WITHIN = 20.0
"""Seconds after a move in which what was on the ring has ended."""


def send(domu: RigDomu, **parameters: str | int) -> None:
    """Load the module that sends requests; what they are is in its parameters (bios.c)."""
    kernel = domu.host.stack.artifacts.domu_kernel
    module = guest_modules.build("bios", kernel, domu.host.context)
    domu.channel.put(module, "/tmp/bios.ko")
    words = [f"{name}={value}" for name, value in parameters.items()]
    domu.channel.run(["insmod", "/tmp/bios.ko", *words], timeout=60)


@pytest.mark.parametrize(
    ("what", "then", "status"),
    [
        pytest.param("discard", "patched", 0, id="plain"),
        pytest.param("secure", "secure-discard", 0, id="secure", marks=pytest.mark.long),
        pytest.param("secure", "patched", -95, id="secure, not offered any more"),
    ],
)
def test_discard_is_on_the_ring(
    host: RigHost, lun: RigLun, what: str, then: str, status: int
) -> None:
    host.load_back(back_end(host, "secure-discard"))
    domu = host.create(disk=lun)
    written = domu.fill()
    with lun.held("writes"):
        send(domu, what=what, sector=2 * 2048, sectors=SECTORS)
        domu.wait_outstanding(1)
        with domu.saving():
            lun.release()
    host.load_back(then if then == "patched" else back_end(host, then))
    domu.restore()
    lines = poll(
        lambda: domu.log.lines("bios: "), Deadline("the discard to end", ENDS_WITHIN), pause=0.2
    )
    assert lines, f"a {what} discard that was on the ring when the guest moved never ends"
    assert lines[-1].endswith(f"{what} ended with {status}"), (
        f"a {what} discard on the ring when the guest moved, under a back end that "
        f"{'does' if status == 0 else 'does not do'} it: {lines[-1]}, not with {status}"
    )
    assert domu.sum() == written, "the disk has changed beside what was discarded"
    domu.run("rmmod bios")
