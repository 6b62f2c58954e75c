"""What the tests of grants do to a disk, and to the pages that its front end grants."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import programs

from emu.channel.process import Process
from emu.deadline import Deadline
from emu.rig import RigDomu, RigHost
from emu.xen import granted
from emu.xen.config import virtual_device
from emu.xen.xenstore import XenstoreTree

DISK = "xvda"
NUMBER = virtual_device(DISK)
GOES_WITHIN = 20.0
"""Seconds until an end has noticed that the other is gone."""


def force_detach(domu: RigDomu) -> None:
    """Take the disk from under both ends (`xl block-detach --force`)."""
    host = domu.host
    host.xen.xl("block-detach", "--force", str(domu.domain.domid), str(NUMBER), timeout=60)
    domu.forget(DISK)


def gone(domu: RigDomu) -> None:
    """Wait until the domU has no device of the disk any more."""
    device = f"/sys/bus/xen/devices/vbd-{NUMBER}"
    script = (
        f"n=0; while [ -e {device} ]; do n=$((n+1)); [ $n -gt 400 ] && exit 1; usleep 50000; done"
    )
    domu.run(script, timeout=60)


def unbind_back(domu: RigDomu) -> None:
    """Take dom0's driver off the disk, which stays."""
    _driver(domu, "unbind")


def bind_back(domu: RigDomu) -> None:
    """Give dom0's driver the disk again."""
    _driver(domu, "bind")


def _driver(domu: RigDomu, verb: str) -> None:
    device = f"vbd-{domu.domain.domid}-{NUMBER}"
    domu.host.dom0.run(f"echo {device} > /sys/bus/xen-backend/drivers/vbd/{verb}", timeout=30)


def unbind_front(domu: RigDomu) -> None:
    """Take the domU's driver off the disk, which stays."""
    domu.run(f"echo vbd-{NUMBER} > /sys/bus/xen/drivers/vbd/unbind")


@dataclass(frozen=True)
class Kept:
    """A page of the domU that a program in dom0 maps."""

    ref: int
    program: Process

    def look(self) -> tuple[str, bool]:
        """The page's checksum now, and whether it was the same ever since the last look."""
        self.program.write(b"\n")
        line = b""
        while not line.endswith(b"\n"):
            more = self.program.read(timeout=20)
            assert more, f"keep-mapped ended: {self.program.ended}"
            line += more
        checksum, word = line.decode().split()
        return checksum, word == "same"


@contextlib.contextmanager
def kept_mapped(domu: RigDomu, ref: int) -> Iterator[Kept]:
    """Map a reference of the domU in dom0, beside the back end, for the life of the context."""
    dom0 = domu.host.dom0
    program = programs.put("keep-mapped", dom0, domu.host.cache)
    process = dom0.spawn([program, str(domu.domain.domid), str(ref)])
    kept = Kept(ref, process)
    kept.look()
    try:
        yield kept
    finally:
        process.close_stdin()
        process.wait(20)


def data_refs(domu: RigDomu) -> list[int]:
    """References of the domU that are for data: neither a ring's, nor a console's."""
    table = granted.read_table(domu.host.dom0, domu.domain.domid)
    assert table
    keys: XenstoreTree = domu.host.xen.xenstore(f"/local/domain/{domu.domain.domid}/device")
    named = {int(value) for key, value in keys.values.items() if "ring-ref" in key}
    return sorted(ref for ref in table.refs - named if ref >= granted.RESERVED)


def read_in_the_background(domu: RigDomu, requests: int) -> None:
    """Start as many readers of the disk, of one request each, past the page cache."""
    for number in range(requests):
        domu.channel.spawn(
            f"dd if=/dev/{DISK} of=/dev/null bs=4k count=1 skip={number * 64} iflag=direct"
        )


def power_off(domu: RigDomu) -> None:
    """Let the domU's kernel shut itself down; returns when the domain is gone."""
    # A PVH guest has no ACPI to switch itself off with: Xen takes its reset for an end.
    letter = "o" if domu.host.stack.artifacts.wish.domu.kind == "pv" else "b"
    domu.channel.spawn(f"echo {letter} > /proc/sysrq-trigger")
    wait_ended(domu.host, domu.name)
    domu.domain.close()


def wait_ended(host: RigHost, name: str) -> None:
    """Wait until no domain of that name runs (one that has ended has none, for xl)."""
    until = Deadline("the other end", GOES_WITHIN)
    while any(info.name == name for info in host.xen.list()):
        assert not until.passed, f"domain {name} still runs"
        time.sleep(0.1)
