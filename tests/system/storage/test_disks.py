"""Several domUs on one host, and several disks of a domU: each its own."""

from __future__ import annotations

import pytest
from driver_checks import check_data, check_holds, check_pages

from emu.channel.channel import CommandFailed
from emu.rig import Ledger, RigHost, RigLun

WRITE = "dd if=/dev/zero of=/dev/{} bs=4k count=1 oflag=direct"


@pytest.mark.quick
def test_two_domus_with_luns_and_rings_of_their_own(
    host: RigHost, lun: RigLun, ledger: Ledger
) -> None:
    """The idle domU of the checkpoint is the first; the second is created, and ends alone."""
    first = host.create(disk=lun, ring_pages=16)
    other = host.create_lun(size_mib=32)
    written = first.fill()
    check_holds(first, written)
    with ledger.unchanged():
        second = host.create(disk=other, memory=128, ring_pages=2)
        assert [first.name, second.name] == ["u1", "u2"], "the domUs have other names"
        assert host.domus == [first, second], "the host has other domUs"
        memory = host.xen.domain_info("u2").memory
        assert memory == 128, f"the second domU has {memory} MiB"
        check_pages(first.ring(lun), 16, "beside another domU's")
        check_pages(second.ring(other), 2, "beside another domU's")
        check_data(second)
        ledger.look()
        second.destroy()
    check_holds(first, written)


def test_domu_has_more_disks_than_classic_numbers(host: RigHost, lun: RigLun) -> None:
    """The first sixteen have minor numbers of major 202, later ones extended device numbers."""
    domu = host.create(disk=[lun] * 18, ring_pages=1)
    devices = domu.run("ls /sys/bus/xen/devices").split()
    numbers = {"vbd-51952", "vbd-268439552"}  # xvdp: 202 << 8 | 15 << 4, xvdq: 1 << 28 | 16 << 8
    assert numbers <= set(devices), f"xvdp and xvdq have other virtual devices: {devices}"
    names = domu.disks[15:]
    assert names == ("xvdp", "xvdq", "xvdr"), f"the last disks are named {names}"
    written = domu.fill("xvdr")
    for disk in ("xvda", "xvdp", "xvdq"):
        check_holds(domu, written, disk, after="to the same LUN as xvdr")
    domu.detach("xvdq")
    domu.wait_gone("xvdq")
    domu.attach(lun)
    assert domu.disks[-1] == "xvdq", f"the free name xvdq was not taken: {domu.disks}"
    check_holds(domu, written, "xvdq")


def test_read_only_disk_refuses_writes(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun)
    written = domu.fill()
    domu.attach(lun, "xvdb", mode="r")
    check_holds(domu, written, "xvdb")
    with pytest.raises(CommandFailed) as refused:
        domu.run(WRITE.format("xvdb"))
    said = refused.value.result.stderr.decode()
    assert "xvdb" in said, f"dd failed of something else than the read-only disk: {said}"
    check_holds(domu, written, "xvda")
    domu.run(WRITE.format("xvda"))


def test_luns_of_other_sizes_and_sectors(host: RigHost, lun: RigLun) -> None:
    large = host.create_lun(size_mib=5000, sector=4096)
    small = host.create_lun(size_mib=8, name="small")
    domu = host.create(disk=[lun, large, small])
    names = [domu.lun(disk).name for disk in domu.disks]
    assert names == ["lun0", "lun1", "small"], f"the disks are on LUNs {names}"
    for one, size in ((large, 5000), (small, 8)):
        blocks = domu.run(f"cat /sys/block/{domu.disk(one)}/size")
        assert int(blocks) * 512 == size << 20, (
            f"the disk of a LUN of {size} MiB with sectors of {one.lun.sector} bytes has {blocks} "
            "units of 512 bytes"
        )
    limits = domu.queue_limits("logical_block_size", disk=large)
    assert limits == {"logical_block_size": "4096"}, (
        f"the disk of a LUN with sectors of 4096 bytes has {limits}"
    )
    check_data(domu, large)
