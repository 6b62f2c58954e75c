"""The names and numbers of disks in a domU, by the number that the tool stack gives them.

Xen's docs/man/xen-vbd-interface.7: 202 << 8 for xvd, 3 and 22 << 8 for hd, 8, 65 … 71 and
128 … 135 << 8 for sd, and 1 << 28 for more disks or partitions than these hold. Linux calls
all of them xvd, with major 202.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from disk_by_hand import DiskByHand
from partitioned import SIZE, START, partition

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun

WITHIN = 15.0
"""Seconds until a domU has a disk, or has refused it."""
EXTENDED = 1 << 28


@dataclass(frozen=True)
class Disk:
    """`number` for the tool stack; `name`, `dev` and `minors` are Linux'."""

    number: int
    name: str
    dev: str
    minors: int = 16


DISKS = {
    "hda": Disk(3 << 8, "xvda", "202:0"),
    "hdb": Disk(3 << 8 | 64, "xvdb", "202:16"),
    "hdc": Disk(22 << 8, "xvdc", "202:32"),
    "hdd": Disk(22 << 8 | 64, "xvdd", "202:48"),
    "sdf": Disk(8 << 8 | 80, "xvdf", "202:80"),
    "sdq": Disk(65 << 8, "xvdq", "202:256"),
    "sdea": Disk(128 << 8 | 16 * 2, "xvdea", "202:2080"),
    "xvdg": Disk(202 << 8 | 96, "xvdg", "202:96"),
    "xvdp": Disk(202 << 8 | 240, "xvdp", "202:240"),
    "xvde1": Disk(202 << 8 | 65, "xvde1", "202:65", 1),
    "xvdz": Disk(EXTENDED | 25 << 8, "xvdz", "202:6400", 256),
    "xvdaa3": Disk(EXTENDED | 26 << 8 | 3, "xvdaa3", "202:6659", 1),
}
IMPOSSIBLE = {
    "md0": (9 << 8, "your disk configuration is incorrect"),
    "beyond the extended range": (2 << 28, "above the extended range"),
}


SHOW = """
cd /sys/block
for disk in xvd*; do
    shown=$(cat $disk/dev $disk/range 2> /dev/null) && echo $disk $shown
done
:
"""
"""A disk may go while it is looked at."""


def attach(domu: RigDomu, lun: RigLun, number: int) -> None:
    """Give the domU a disk by its number alone."""
    target = f"phy:{lun.device},{number},w,script=block-emu"
    domu.host.xen.xl("block-attach", str(domu.domain.domid), target, timeout=60)


def detach(domu: RigDomu, number: int) -> None:
    domu.host.xen.xl("block-detach", str(domu.domain.domid), str(number), timeout=60)


def shown(domu: RigDomu) -> dict[str, tuple[str, int]]:
    """The domU's disks: device numbers and how many minors each has."""
    lines = (line.split() for line in domu.run(SHOW).splitlines())
    return {name: (dev, int(minors)) for name, dev, minors in lines}


def wait_shown(domu: RigDomu, disks: list[Disk]) -> dict[str, str]:
    """Wait until these are the domU's disks; what is not so, by name."""
    want = {disk.name: (disk.dev, disk.minors) for disk in disks}
    until = Deadline("the domU's disks", WITHIN)
    now = poll(lambda: shown(domu), until, until=lambda now: now == want, pause=0.1)
    names = now.keys() | want.keys()
    return {
        name: f"is {now.get(name, 'not there')}, not {want.get(name, 'there')}"
        for name in sorted(names)
        if now.get(name) != want.get(name)
    }


def test_disks_have_their_names_in_any_order(host: RigHost, lun: RigLun) -> None:
    """All at once; half of them go, and come back in another order."""
    domu = host.create(ring_pages=1)
    disks = list(DISKS.values())
    for disk in disks:
        attach(domu, lun, disk.number)
    wrong = wait_shown(domu, disks)
    assert not wrong, f"names and numbers of disks: {wrong}"
    gone, kept = disks[::2], disks[1::2]
    for disk in gone:
        detach(domu, disk.number)
    wrong = wait_shown(domu, kept)
    assert not wrong, f"after every other disk was detached: {wrong}"
    for disk in reversed(gone):
        attach(domu, lun, disk.number)
    wrong = wait_shown(domu, disks)
    assert not wrong, f"names and numbers of disks that were attached again: {wrong}"
    said = domu.log.lines("might conflict")
    assert not said, f"a domU without emulated disks warns of them: {said}"


def errors(domu: RigDomu, text: str) -> list[str]:
    until = Deadline("the domU's word on a disk it can't have", WITHIN)
    return poll(lambda: domu.log.lines(text), until)


def test_name_that_is_taken_is_refused(host: RigHost, lun: RigLun) -> None:
    """Two numbers of one name, and numbers of none: one line, and the other disks go on."""
    domu = host.create(ring_pages=1)
    first, second = 202 << 8, 3 << 8
    attach(domu, lun, first)
    domu.wait_connected()
    written = domu.fill()
    refused = {"hda": (second, f"vbd vbd-{second}: "), **IMPOSSIBLE}
    wrong: dict[str, str] = {}
    for name, (number, words) in refused.items():
        domu.log.mark()
        attach(domu, lun, number)
        if not errors(domu, words):
            wrong[name] = f"nothing with {words!r} is logged"
        elif list(shown(domu)) != ["xvda"]:
            wrong[name] = f"the domU has {sorted(shown(domu))}, not xvda alone"
        elif domu.sum() != written:
            wrong[name] = "the disk that has the name has other data"
        detach(domu, number)
    assert not wrong, f"disks that can't be had: {wrong}"
    detach(domu, first)
    assert not wait_shown(domu, []), "the domU keeps a disk that was detached"
    attach(domu, lun, second)
    wrong = wait_shown(domu, [Disk(second, "xvda", "202:0")])
    assert not wrong, f"the name is not free after its disk has gone: {wrong}"


DATA = "dd if=/dev/urandom of=$1 bs=1M seek=1 count=1; sync"
SUM = "dd if=/dev/$1 bs=64k skip=$2 count=16 iflag=direct 2> /dev/null | sha256sum"


@pytest.mark.parametrize("disk", ["xvda", "xvdr"])
def test_partition_has_its_name(host: RigHost, lun: RigLun, disk: str) -> None:
    """One of the LUN's partition table, at 1 MiB."""
    partition(lun)
    host.dom0.run(["sh", "-c", DATA, "sh", lun.device], timeout=30)
    domu = host.create(ring_pages=1)
    domu.attach(lun, disk)
    script = "cd /sys/block/$1/${1}1 && cat dev start size"
    answer = domu.channel.run(["sh", "-c", script, "sh", disk], timeout=20, check=False)
    minor = 1 if disk == "xvda" else 17 * 256 + 1
    want = [f"202:{minor}", str(START), str(SIZE)]
    assert answer.text.split() == want, (
        f"the partition {disk}1 shows device, start and size {answer.text.split()}, not {want}"
    )
    sums = [
        guest.run(["sh", "-c", SUM, "sh", name, skip], timeout=30).text
        for guest, name, skip in (
            (domu.channel, f"{disk}1", "0"),
            (host.dom0, lun.block, "16"),
        )
    ]
    assert sums[0] == sums[1], "the partition does not begin where the LUN's table says"


def test_number_beside_the_usual_key_counts(host: RigHost, lun: RigLun) -> None:
    """`virtual-device-ext` is read where there is no `virtual-device`."""
    domu = host.create(ring_pages=1)
    disk = DiskByHand(domu, number_key="virtual-device-ext")
    states = disk.give(lun)
    assert states.connected, f"a disk with its number in virtual-device-ext: {states}"
    wrong = wait_shown(domu, [Disk(202 << 8, "xvda", "202:0")])
    assert not wrong, f"a disk with its number in virtual-device-ext: {wrong}"
    kept = disk.take()
    assert not kept, f"a disk with its number in virtual-device-ext does not go: {kept}"


THREADS = "cat /proc/[0-9]*/comm 2> /dev/null | grep xvda || :"


def test_thread_has_the_name_of_the_disk(host: RigHost, lun: RigLun) -> None:
    """With the domU's number; a name may be a path."""
    domu = host.create(ring_pages=1)
    for dev in ("xvda", "/dev/xvda"):
        disk = DiskByHand(domu, dev=dev)
        states = disk.give(lun)
        assert states.connected, f"a disk that dom0 calls {dev}: {states}"
        names = host.dom0.run(THREADS, timeout=20).text.split()
        want = [f"{domu.domain.domid}.xvda-0"]
        assert names == want, f"the thread of a disk that dom0 calls {dev} is called {names}"
        kept = disk.take()
        assert not kept, f"a disk that dom0 calls {dev} does not go: {kept}"
