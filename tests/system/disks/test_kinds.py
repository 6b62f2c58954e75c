"""Disks and CD-ROMs: what the back end says of them, and what they answer in the domU."""

from __future__ import annotations

import errno

import programs
import pytest
from partitioned import START, partition

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun
from emu.xen.vdev import virtual_device

WITHIN = 15.0
"""Seconds until a domU has a disk."""
CDROM, READ_ONLY = 1, 4
"""VDISK_CDROM and VDISK_READONLY of io/blkif.h, in the key `info`."""
HEADS, SECTORS = 255, 63
LUN_SECTORS = 256 << 11
GIB = 1 << 30
ANSWERS = {
    "geometry": f"{HEADS} {SECTORS} {LUN_SECTORS // (HEADS * SECTORS)}",
    "multisession": "zero",
    "nowhere": str(errno.EFAULT),
    "other": str(errno.EINVAL),
}


def attach(domu: RigDomu, lun: RigLun, disk: str, words: str) -> None:
    """Give the domU a disk as xl reads it (xl-disk-configuration(5))."""
    target = f"phy:{lun.device},{disk},{words},script=block-emu"
    domu.host.xen.xl("block-attach", str(domu.domain.domid), target, timeout=60)
    until = Deadline(disk, WITHIN)
    front = domu.domain.front_path(disk)
    state = poll(lambda: host_state(domu, front), until, until=lambda state: state == "4")
    assert state == "4", f"the front end of {disk} ({words}) is in state {state}, not Connected"


def host_state(domu: RigDomu, path: str) -> str | None:
    return domu.host.xen.read(f"{path}/state")


def asked(domu: RigDomu, disk: str) -> dict[str, str]:
    """What a disk answers to ioctl()."""
    program = programs.put("ask-disk", domu.channel, domu.host.cache)
    lines = domu.channel.run([program, f"/dev/{disk}"], timeout=20).text.splitlines()
    return {name: words for name, _, words in (line.partition(" ") for line in lines)}


@pytest.mark.stack(domu="pv")
def test_cdrom_is_shown_as_one(host: RigHost, lun: RigLun) -> None:
    """A PV domU's: one in PVH leaves CD-ROMs to emulated drives."""
    partition(lun)
    domu = host.create()
    kinds = {
        "xvda": ("w", 0),
        "xvdb": ("r,devtype=cdrom", CDROM | READ_ONLY),
        "xvdc": ("r", READ_ONLY),
    }
    wrong: dict[str, str] = {}
    for disk, (words, info) in kinds.items():
        attach(domu, lun, disk, words)
        shown = domu.domain.back_tree(disk).get("info")
        answers = asked(domu, disk)
        want = {**ANSWERS, "cdrom": "yes" if info & CDROM else "no"}
        if shown != str(info):
            wrong[disk] = f"the back end's info is {shown}, not {info}"
        elif answers != want:
            wrong[disk] = f"it answers {answers}, not {want}"
        elif domu.run(f"cat /sys/block/{disk}/ro").strip() != str(int(bool(info & READ_ONLY))):
            wrong[disk] = "it is not read-only as its back end says"
        elif domu.run(f"cat /sys/block/{disk}/{disk}1/start").strip() != str(START):
            wrong[disk] = "it has not the partition of its LUN"
    assert not wrong, f"disks by what they are attached as: {wrong}"


MOST_CYLINDERS = 0xFFFF
"""What struct hd_geometry has room for."""
TOO_FAR = 4096
"""The first disk whose minor number needs more than MINORBITS: 256 numbers are a disk's."""


def test_large_disk_has_the_most_cylinders(host: RigHost) -> None:
    """Of a disk with more, as many as the structure holds are told, not what is left of them."""
    sizes = {
        size: min(size * GIB // 512 // (HEADS * SECTORS), MOST_CYLINDERS) for size in (500, 600)
    }
    domu = host.create()
    wrong = {}
    for size, cylinders in sizes.items():
        large = host.create_lun(size_mib=size << 10)
        domu.attach(large)
        told = asked(domu, domu.disk(large))["geometry"]
        if told != f"{HEADS} {SECTORS} {cylinders}":
            wrong[f"{size} GiB"] = f"geometry {told}, not {HEADS} {SECTORS} {cylinders}"
    assert not wrong, f"heads, sectors and cylinders of disks by size: {wrong}"


def test_disk_without_a_number_is_left_alone(host: RigHost, lun: RigLun) -> None:
    """The front end says so, and its other disks work."""
    domu = host.create(disk=lun)
    domu.log.mark()
    other = host.create_lun()
    target = f"phy:{other.device},d{TOO_FAR}p0,w,script=block-emu"
    host.xen.xl("block-attach", str(domu.domain.domid), target, timeout=60)
    until = Deadline("the front end's word on a number out of range", WITHIN)
    lines = poll(lambda: domu.log.lines("out of range"), until, pause=0.1)
    assert len(lines) == 1, f"of a disk with a number out of range the front end logs {lines}"
    disks = domu.run("ls /sys/block | grep xvd").split()
    assert disks == ["xvda"], f"beside a disk that is out of range there are {disks}"
    assert domu.fill() == domu.sum(), "the disk beside does not hold what was written"


@pytest.mark.long
@pytest.mark.stack(domu="pvh")
def test_cdrom_of_a_pvh_domu_is_left_alone(host: RigHost, lun: RigLun) -> None:
    domu = host.create()
    target = f"phy:{lun.device},xvdb,r,devtype=cdrom,script=block-emu"
    host.xen.xl("block-attach", str(domu.domain.domid), target, timeout=60)
    domu.attach(lun)
    disks = domu.run("ls /sys/block | grep xvd").split()
    assert disks == ["xvda"], f"a PVH domU has {disks}: a front end took a CD-ROM"
    device = f"vbd-{virtual_device('xvdb')}"
    assert device in domu.run("ls /sys/bus/xen/devices").split(), "there was no CD-ROM to be taken"
