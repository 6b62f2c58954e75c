"""Disks as xl knows them: every kind of name, and every option, over a save and restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from partitioned import partition

from emu.errors import InputError, NotHeld
from emu.rig import RigDomu, RigHost, RigLun

SMALL = pytest.mark.stack(domu_memory=128)

CDROM_READ_ONLY = "5"
"""VDISK_CDROM | VDISK_READONLY of io/blkif.h."""


@dataclass(frozen=True)
class Disk:
    """A disk's name, Linux' name, what it is attached with, and what it then has in sysfs."""

    name: str
    block: str
    options: dict[str, Any]
    shows: dict[str, str]


DISKS = (
    Disk("hda", "xvda", {}, {"ro": "0", "removable": "0"}),
    Disk("sdb", "xvdb", {"mode": "r"}, {"ro": "1"}),
    Disk("xvdc1", "xvdc1", {}, {"size": "65536"}),
    Disk("xvdaa", "xvdaa", {"discard": False}, {"queue/discard_max_bytes": "0"}),
    Disk("xvde", "xvde", {"trusted": False}, {"ro": "0"}),
    Disk("sdf", "xvdf", {"partition": 1}, {"size": "4096"}),
    Disk("xvdg", "xvdg", {"mode": "r", "cdrom": True}, {"ro": "1"}),
)


def differing(domu: RigDomu, trusted: str) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for disk in DISKS:
        script = f"cd /sys/block/{disk.block} && cat {' '.join(disk.shows)}"
        shown = dict(zip(disk.shows, domu.run(script).split(), strict=True))
        ring = domu.ring(disk.name)
        if shown != disk.shows:
            wrong[disk.name] = f"it has {shown}, not {disk.shows}"
        elif not ring.connected:
            wrong[disk.name] = f"its ring is not connected: {ring}"
        elif disk.shows.get("ro") != "1" and domu.fill(disk.name) != domu.sum(disk.name):
            wrong[disk.name] = "what is read is not what was written"
    domain = domu.domain
    for name, path, want in (
        ("xvde", f"{domain.front_path('xvde')}/trusted", trusted),
        ("xvdg", f"{domain.back_path('xvdg')}/info", CDROM_READ_ONLY),
    ):
        if (key := domu.host.xen.read(path)) != want:
            wrong[name] = f"the key {path} is {key}, not {want}"
    return wrong


@SMALL
def test_disks_of_every_kind(host: RigHost, lun: RigLun) -> None:
    divided = host.create_lun(size_mib=32)
    partition(divided)
    host.dom0.run(["blockdev", "--rereadpt", divided.device], timeout=20)
    domu = host.create(ring_pages=2)
    for disk in DISKS:
        of = divided if disk.options.get("partition") else host.create_lun(size_mib=32)
        ring = domu.attach(of, disk.name, **disk.options)
        assert ring.connected, f"{disk.name} is attached, but not connected: {ring}"
    want = tuple(disk.name for disk in DISKS)
    assert domu.disks == want, f"the domU has disks {domu.disks}, not {want}"
    wrong = differing(domu, trusted="0")
    assert not wrong, f"as they were attached: {wrong}"
    domu.save_and_restore()
    # libxl keeps no word for a back end that is not trusted.
    wrong = differing(domu, trusted="1")
    assert not wrong, f"after a restore: {wrong}"
    with domu.verifying_io(4, "sdf"):
        pass
    for disk in DISKS:
        domu.detach(disk.name)
        domu.wait_gone(disk.name)
    assert domu.disks == (), f"all disks are detached, but the domU has {domu.disks}"


@SMALL
def test_disks_at_boot(host: RigHost, lun: RigLun) -> None:
    """They are in the domU's configuration, and the stock front end may have seen them."""
    luns = (lun, host.create_lun(size_mib=32))
    domu = host.create(disk=luns, at_boot=True, ring_pages=2)
    assert domu.disks == ("xvda", "xvdb"), f"the domU has disks {domu.disks}"
    with pytest.raises(InputError, match="can't be moved with xvda, xvdb"):
        domu.save()
    for disk, of in zip(domu.disks, luns, strict=True):
        pages = domu.ring(disk).pages
        assert pages == 2, f"{disk} has a ring of {pages} pages"
        assert domu.fill(disk) == domu.sum(disk), f"{disk} holds other data than was written"
        domu.detach(disk)
        domu.wait_gone(disk)
        assert domu.attach(of, disk).connected, f"the name {disk} is not free again"
    domu.save_and_restore(max_ring_pages=1)
    for disk in domu.disks:
        pages = domu.ring(disk).pages
        assert pages == 1, f"after a restore {disk} has a ring of {pages} pages"
        assert domu.fill(disk) == domu.sum(disk), f"{disk} holds other data than was written"


@SMALL
def test_refused_disk_is_taken_away(host: RigHost, lun: RigLun) -> None:
    """Linux has the name xvda for hda, too."""
    domu = host.create(disk=lun, ring_pages=2)
    other = host.create_lun()
    with pytest.raises(NotHeld, match="hda of domU u1 did not connect"):
        domu.attach(other, "hda")
    assert domu.disks == ("xvda",), f"the domU has disks {domu.disks}"
    domu.wait_gone("hda")
    left = host.xen.read(f"{domu.domain.back_path('hda')}/state")
    assert not left, f"the back end of the disk that was refused is in state {left}"
    domu.attach(other, "xvdb")
    for disk in domu.disks:
        assert domu.fill(disk) == domu.sum(disk), f"{disk} holds other data than was written"
