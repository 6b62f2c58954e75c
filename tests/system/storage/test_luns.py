"""LUNs: several, of any size, with 512 or 4096 byte sectors, each its own."""

from __future__ import annotations

import hashlib
import os

import pytest

from emu.errors import InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import from_environment
from emu.stack.drivers import drivers_for, load_drivers
from emu.stack.stack import Stack
from emu.xen import lun


@pytest.mark.drivers
def test_luns_are_separate(stack: Stack, cache: Cache) -> None:
    host, domain = stack.host, stack.domain
    small = host.create_lun("small", 16 * lun.MIB, 512)
    large = host.create_lun("large", 5000 * lun.MIB, 4096)
    mixed = host.create_lun("mixed", 16 * lun.MIB, 512, physical=4096)
    devices = [stack.lun.device, small.device, large.device, mixed.device]
    assert len(set(devices)) == 4, f"LUNs share a device: {devices}"
    for one, physical in ((stack.lun, 512), (small, 512), (large, 4096), (mixed, 4096)):
        root = f"/sys/block/{one.block}"
        files = ("size", "queue/logical_block_size", "queue/physical_block_size")
        script = "cat " + " ".join(f"{root}/{file}" for file in files)
        facts = host.dom0.run(script, timeout=20).text.split()
        assert facts == [str(one.size // 512), str(one.sector), str(physical)], (
            f"dom0 sees LUN {one.name}, {one.size} bytes of {one.sector}, as {facts}"
        )
        assert lun.session_up(host.dom0, one), f"the session of LUN {one.name} is not up"
    with pytest.raises(InputError, match="4096-byte sectors don't lie in physical ones of 512"):
        host.create_lun("wrong", 16 * lun.MIB, 4096, physical=512)

    # Through the rings: what goes to one LUN is on that one, and on no other.
    load_drivers(
        stack,
        drivers_for(stack.artifacts, BuildContext(cache, patched=from_environment())),
        cache,
        pages=1,
    )
    written = {}
    for disk, one in (("xvda", stack.lun), ("xvdb", small), ("xvdc", large)):
        domain.attach(one, disk)
        domain.wait_connected(disk)
        data = os.urandom(65536)
        written[one] = hashlib.sha256(data).hexdigest()
        domain.channel.put(data, "/tmp/data")
        domain.channel.run(
            f"dd if=/tmp/data of=/dev/{disk} bs=64k oflag=direct conv=fsync", timeout=60
        )
    for one, digest in written.items():
        read = f"dd if={one.device} bs=64k count=1 iflag=direct 2>/dev/null | sha256sum"
        held = host.dom0.run(read, timeout=60).text.split()[0]
        assert held == digest, f"LUN {one.name} does not hold what its disk was given"
    size = domain.channel.run("cat /sys/block/xvdc/queue/logical_block_size", timeout=20).text
    assert size.strip() == "4096", f"a disk with sectors of 4096 bytes has {size.strip()}"


def test_removed_lun_leaves_nothing(stack: Stack) -> None:
    dom0 = stack.host.dom0
    state = "ls /sys/kernel/config/target/core/user_0 /sys/kernel/config/target/iscsi /scratch"
    before = dom0.run(state, timeout=20).text
    one = stack.host.create_lun("gone", 8 * lun.MIB)
    lun.remove(dom0, one)
    left = dom0.run(state, timeout=20).text
    assert left == before, f"a removed LUN left something:\n{left}\nbefore:\n{before}"
    assert not lun.session_up(dom0, one), "the session of a removed LUN is up"
    again = stack.host.create_lun("gone", 8 * lun.MIB).name
    assert again == "gone", f"a LUN of the removed one's name is called {again}"


@pytest.mark.parametrize(
    ("name", "size", "sector", "message"),
    [
        ("lun0;reboot", lun.MIB, 512, "no LUN name"),
        ("x", lun.MIB, 1024, "512 or 4096 bytes, not 1024"),
        ("x", 4096 + 512, 4096, "no whole number of 4096-byte sectors"),
        ("x", 0, 512, "no whole number"),
    ],
)
def test_impossible_lun_is_refused(
    stack: Stack, name: str, size: int, sector: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        stack.host.create_lun(name, size, sector)
