"""The two modules: what they can be unloaded under, and what comes of their disks."""

from __future__ import annotations

import programs
import pytest
from kept import kept, more_than

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun
from emu.xen.drivers import BACK, FRONT, unload

READ = "dd if=/dev/xvda of=/dev/null bs=4k count=1 skip={} iflag=direct"
LET_GO_WITHIN = 10.0
"""Seconds until a module has no user any more."""
# Open before the driver goes, used after it has gone.
OPENER = """
exec 3< /dev/xvda
echo open
read -r word
dd bs=4k count=1 <&3 2> /dev/null | wc -c
read -r word
exec 3<&-
"""


def uses(domu: RigDomu, end: str) -> int:
    """How often the kernel counts an end's module as used."""
    guest, module = (domu.channel, FRONT) if end == "front" else (domu.host.dom0, BACK)
    return int(guest.run(["cat", f"/sys/module/{module}/refcnt"], timeout=20).text)


def refused(domu: RigDomu, end: str) -> bool:
    """Whether an end's module can't be unloaded now."""
    guest, module = (domu.channel, FRONT) if end == "front" else (domu.host.dom0, BACK)
    answer = guest.run(["rmmod", module], timeout=20, check=False)
    words = (b"unavailable", b"is in use")
    return answer.status != 0 and any(word in answer.stderr for word in words)


def test_module_of_a_disk_stays(host: RigHost, lun: RigLun) -> None:
    """While a disk is connected, read and held: neither end's can be unloaded, and the disk does
    not notice. Without a disk both can, and come back to the same one."""
    domu = host.create(disk=lun, ring_pages=2)
    written = domu.fill()
    gone = [end for end in ("front", "back") if not refused(domu, end)]
    assert not gone, f"the module of the {gone} end was unloaded under a connected disk"
    with lun.held():
        reader = domu.channel.spawn(READ.format(64))
        domu.wait_outstanding(1)
        gone = [end for end in ("front", "back") if not refused(domu, end)]
        assert not gone, f"the module of the {gone} end was unloaded under a request"
    assert reader.wait(30).status == 0, "a read failed whose drivers were to be unloaded"
    assert domu.sum() == written, "a disk whose drivers were to be unloaded has other data"
    domu.unbind_front()
    unload(domu.channel, FRONT)
    domu.load_front(max_ring_pages=4)
    assert domu.wait_connected().pages == 4, "the front end that was loaded has another limit"
    assert domu.sum() == written, "the disk of a front end that was loaded anew has other data"


def test_front_end_goes_while_its_disk_is_open(host: RigHost, lun: RigLun) -> None:
    """Its disk is dead, its module stays until the last user has closed it; then it may go."""
    domu = host.create(disk=lun, ring_pages=2)
    written = domu.fill()
    before = kept(host, domu)
    opener = domu.channel.spawn(["sh", "-c", OPENER])
    assert opener.read(64, timeout=20) == b"open\n", "the disk could not be opened"
    domu.unbind_front()
    assert uses(domu, "front") > 0, "the module has no user, but its disk is open"
    assert refused(domu, "front"), "the module was unloaded while its disk was open"
    opener.write(b"read\n")
    number = opener.read(64, timeout=20).strip()
    assert number == b"0", f"{number.decode()} bytes were read of a disk whose driver is gone"
    opener.write(b"close\n")
    opener.wait(20)
    until = Deadline("the module's users to go", LET_GO_WITHIN)
    left = poll(lambda: uses(domu, "front"), until, until=lambda left: not left, pause=0.1)
    assert left == 0, f"the front end's module has {left} users, and no disk"
    domu.load_front(max_ring_pages=2)
    domu.wait_connected()
    assert domu.sum() == written, "the disk that came back has other data"
    more = more_than(before, host, domu)
    assert not more, f"what is kept of the disk whose driver had gone: {more}"


@pytest.mark.parametrize("persistent", [1, pytest.param(0, marks=pytest.mark.long)])
def test_back_end_goes_with_requests_at_the_lun(
    host: RigHost, lun: RigLun, persistent: int
) -> None:
    """It is unbound while the LUN holds reads: its module stays until they are answered, which
    they are; loaded again it takes the same ring up."""
    domu = host.create(disk=lun, ring_pages=2, back_parameters={"feature_persistent": persistent})
    written = domu.fill()
    with lun.held():
        readers = [domu.channel.spawn(READ.format(64 * number)) for number in range(4)]
        domu.wait_outstanding(4)
        domu.unbind_back()
        assert uses(domu, "back") > 0, "the module has no user, but requests at the LUN"
        assert refused(domu, "back"), "the module was unloaded while the LUN had its requests"
    failed = [reader.wait(30) for reader in readers]
    failed = [ended for ended in failed if ended.status]
    assert not failed, f"reads that were at the LUN when the back end went have failed: {failed}"
    until = Deadline("the module's users to go", LET_GO_WITHIN)
    left = poll(lambda: uses(domu, "back"), until, until=lambda left: not left, pause=0.1)
    assert left == 0, f"the back end's module has {left} users, and no disk"
    host.load_back(feature_persistent=persistent)
    domu.wait_back("Connected")
    domu.wait_connected()
    assert domu.sum() == written, "the disk that came back has other data"
    assert domu.fill() == domu.sum(), "the disk that came back can't be written"
    domu.detach()


@pytest.mark.long
@pytest.mark.stack(kernel_options="slub_debug=P")
def test_open_disk_is_asked_when_its_driver_has_gone(host: RigHost, lun: RigLun) -> None:
    """What the kernel frees reads as "kkkk" with this option: a disk that looks at it would say
    that it is a CD-ROM."""
    domu = host.create(disk=lun)
    program = programs.put("ask-disk", domu.channel, host.cache)
    asking = domu.channel.spawn([program, "/dev/xvda", "wait"])
    assert asking.read(64, timeout=20) == b"open\n", "the disk could not be opened"
    domu.unbind_front()
    asking.write(b"\n")
    asking.wait(20)
    lines = asking.read(256).decode().splitlines()
    assert "cdrom no" in lines, (
        f"asked after its driver had gone, the disk answers {lines}: it looks at freed memory"
    )
