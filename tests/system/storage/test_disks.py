"""Several domUs on one host, and several disks of a domU: each its own."""

from __future__ import annotations

import pytest

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
    assert first.sum() == written
    with ledger.unchanged():
        second = host.create(disk=other, memory=128, ring_pages=2)
        assert [first.name, second.name] == ["u1", "u2"]
        assert host.domus == [first, second]
        assert host.xen.domain_info("u2").memory == 128
        assert [first.ring(lun).pages, second.ring(other).pages] == [16, 2]
        assert second.fill() == second.sum()
        ledger.look()
        second.destroy()
    assert first.sum() == written


def test_domu_has_more_disks_than_classic_numbers(host: RigHost, lun: RigLun) -> None:
    """The first sixteen have minor numbers of major 202, later ones extended device numbers."""
    domu = host.create(disk=[lun] * 18, ring_pages=1)
    assert domu.disks[15:] == ("xvdp", "xvdq", "xvdr")
    written = domu.fill("xvdr")
    assert {domu.sum(disk) for disk in ("xvda", "xvdp", "xvdq")} == {written}
    domu.detach("xvdq")
    domu.wait_gone("xvdq")
    domu.attach(lun)
    assert domu.disks[-1] == "xvdq"
    assert domu.sum("xvdq") == written


def test_read_only_disk_refuses_writes(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun)
    written = domu.fill()
    domu.attach(lun, "xvdb", mode="r")
    assert domu.sum("xvdb") == written
    with pytest.raises(CommandFailed) as refused:
        domu.run(WRITE.format("xvdb"))
    assert "xvdb" in refused.value.result.stderr.decode()
    assert domu.sum("xvda") == written
    domu.run(WRITE.format("xvda"))


def test_luns_of_other_sizes_and_sectors(host: RigHost, lun: RigLun) -> None:
    large = host.create_lun(size_mib=5000, sector=4096)
    small = host.create_lun(size_mib=8, name="small")
    domu = host.create(disk=[lun, large, small])
    assert [domu.lun(disk).name for disk in domu.disks] == ["lun0", "lun1", "small"]
    for one, size in ((large, 5000), (small, 8)):
        blocks = domu.run(f"cat /sys/block/{domu.disk(one)}/size")
        assert int(blocks) * 512 == size << 20
    assert domu.queue_limits("logical_block_size", disk=large) == {"logical_block_size": "4096"}
    assert domu.fill(large) == domu.sum(large)
