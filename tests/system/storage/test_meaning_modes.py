"""What a disk may be beside one to write to: read-only, removable, a CD-ROM."""

from __future__ import annotations

import errno

from asking import PAGE, Asker, Content, check_good, faults, read, write
from back_ends import back_end

from emu.images.cache import Cache
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun

CDROM, REMOVABLE, READ_ONLY = 1, 2, 4
"""Flags of the key "info" (VDISK_CDROM and so on, io/blkif.h)."""
AREA = 16 * PAGE


def info(domu: RigDomu, disk: str = FIRST_DISK) -> int | None:
    """The flags that the back end publishes."""
    return domu.domain.back_tree(disk).integer("info")


def says(domu: RigDomu, file: str, disk: str = FIRST_DISK) -> str:
    """What the domU's kernel says of its disk."""
    return domu.run(f"cat /sys/block/{disk}/{file}").strip()


def test_read_only_disk_changes_nothing(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """Each way to change it is refused, nothing of it reaches the LUN, and it is still read."""
    content = Content(lun)
    dom0 = Asker(host.dom0, lun.device, cache)
    check_good(content.done(dom0.ask(write(0, 1, (0, AREA)))))
    domu = host.create(disk=lun, mode="r")
    asker = Asker(domu.channel, "/dev/xvda", cache)
    wrong: list[str] = []
    if info(domu) != READ_ONLY:
        wrong.append(f"the back end's key info is {info(domu)}, not {READ_ONLY}")
    if says(domu, "ro") != "1":
        wrong.append("the domU's disk is not read-only")
    mark = lun.mark()
    # No discard is offered of what may not be written.
    refused = (errno.EPERM, errno.EACCES, errno.EBADF, errno.EROFS, errno.EOPNOTSUPP)
    for asked in (
        write(0, 2, (0, PAGE)),
        f"discard 0 {AREA}",
        f"secure 0 {AREA}",
        f"zero 0 {AREA}",
    ):
        if -(result := asker.result(asked)) not in refused:
            wrong.append(f"{asked} of a read-only disk is answered with {result}")
    if changed := lun.requests(mark).writes:
        wrong.append(f"the LUN was changed: {', '.join(map(str, changed))}")
    wrong += faults(asker.ask(read(0, 1, (512, AREA))))
    wrong += content.differences(0, AREA)
    assert not wrong, "\n".join(wrong)


def test_fsync_of_a_read_only_disk_succeeds(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """There is nothing to be written out, and so nothing that could fail; reads go on."""
    domu = host.create(disk=lun, mode="r")
    asker = Asker(domu.channel, "/dev/xvda", cache)
    results = [asker.result("fsync") for _ in range(2)]
    assert results == [0, 0], f"two fsyncs of a read-only disk are answered with {results}"
    check_good(asker.ask(read(0, 0, (0, PAGE))))


def test_flags_of_other_disks(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """A CD-ROM as the toolstack's device-type has it; removable as the back end's disk has it."""
    domu = host.create(disk=lun, front=None)
    wrong: list[str] = []
    host.xen.write({f"{domu.domain.front_path()}/device-type": "cdrom"})
    # It reads that when it gets its disk.
    domu.unbind_back()
    domu.bind_back()
    domu.wait_back("InitWait")
    domu.load_front()
    domu.wait_connected()
    wrong += flaws(domu, cache, "a CD-ROM", CDROM)
    domu.detach()
    domu.wait_gone()

    host.load_back(back_end(host, "removable"))
    domu.attach(lun)
    wrong += flaws(domu, cache, "a removable disk", REMOVABLE)
    assert not wrong, "\n".join(wrong)


def flaws(domu: RigDomu, cache: Cache, what: str, flags: int) -> list[str]:
    """What is wrong with a disk that is to have `flags`."""
    is_cdrom = Asker(domu.channel, "/dev/xvda", cache).result("cdrom")
    removable = says(domu, "removable")
    return [
        f"of {what} {line}"
        for wrong, line in (
            (info(domu) != flags, f"the back end's key info is {info(domu)}, not {flags}"),
            (
                is_cdrom != (0 if flags & CDROM else -errno.EINVAL),
                f"CDROM_GET_CAPABILITY is answered with {is_cdrom}",
            ),
            (
                removable != str(int(bool(flags & REMOVABLE))),
                f"the domU's kernel says removable: {removable}",
            ),
            (says(domu, "ro") != "0", "the domU's disk is read-only"),
        )
        if wrong
    ]
