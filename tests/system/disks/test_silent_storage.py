"""A disk whose storage does not answer: the guest's xenbus thread serves all else."""

from __future__ import annotations

from partitioned import partition

from emu.rig import RigDomu, RigHost, RigLun

PARTITIONS_WITHIN = 20.0
MEMORY_WITHIN = 20.0
MEMORY = "/sys/devices/system/xen_memory/xen_memory0/info/current_kb"


def others_come_and_go(domu: RigDomu, other: RigLun, disk: str) -> None:
    domu.attach(other, disk)
    assert domu.fill(disk) == domu.sum(disk), f"{disk} holds other data than was written"
    domu.detach(disk)
    domu.wait_gone(disk)


def follows_its_memory(domu: RigDomu, mib: int) -> None:
    """The domU's kernel hears of its memory in xenbus' thread."""
    domu.host.xen.xl("mem-set", domu.name, str(mib))
    domu.channel.wait_until(
        f"[ $(cat {MEMORY}) -le $1 ]", f"the domU to have {mib} MiB", MEMORY_WITHIN, str(mib << 10)
    )


def test_partitions_that_can_not_be_read_yet(host: RigHost, lun: RigLun) -> None:
    """Stock reads them in xenbus' thread: until the storage answers no other disk comes or goes,
    and the guest is not saved, nor its memory changed. The series leaves them to a work."""
    partition(lun)
    first, other = host.create_lun(), host.create_lun()
    domu = host.create(ring_pages=4)
    domu.attach(first, "xvdb")
    with lun.held():
        domu.offer(lun, "xvda")
        lun.await_outstanding(1)
        others_come_and_go(domu, other, "xvdc")
        domu.detach("xvdb")
        domu.wait_gone("xvdb")
        follows_its_memory(domu, 240)
        domu.save_and_restore()
        others_come_and_go(domu, other, "xvdc")
    domu.channel.wait_until(
        "[ -e /sys/block/xvda/xvda1 ]", "the partition of the disk that answers", PARTITIONS_WITHIN
    )
    assert domu.fill("xvda") == domu.sum("xvda"), "the disk holds other data than was written"


def test_silent_disk_is_taken_away(host: RigHost, lun: RigLun) -> None:
    """Also while its partitions are read: its name is free when the storage has answered."""
    other = host.create_lun()
    domu = host.create(ring_pages=4)
    for way in (domu.detach, domu.force_detach):
        with lun.held():
            domu.offer(lun, "xvda")
            lun.await_outstanding(1)
            way("xvda")
            others_come_and_go(domu, other, "xvdc")
        domu.channel.wait_until("[ ! -e /sys/block/xvda ]", "xvda to be gone", PARTITIONS_WITHIN)
        domu.attach(lun, "xvda")
        assert domu.fill("xvda") == domu.sum("xvda"), "the disk holds other data than was written"
        domu.detach("xvda")
        domu.wait_gone("xvda")
