"""What dom0 shows of a disk in sysfs: exact counts, of all queues, whenever it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from emu.deadline import Deadline, poll
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun

DEVICES = "/sys/bus/xen-backend/devices"
ON_EACH_CPU = """
set -e
for cpu in 0 1; do
    on="taskset -c $cpu dd bs=4k seek=$((cpu * 64)) skip=$((cpu * 64))"
    $on if=/dev/zero of=/dev/xvda count=5 oflag=direct
    $on if=/dev/xvda of=/dev/null count=3 iflag=direct
    $on if=/dev/zero of=/dev/xvda count=1 oflag=direct conv=fsync
done
blkdiscard -o 1048576 -l 131072 /dev/xvda
"""
WORK = {
    "rd_req": 2 * 3,
    "rd_sect": 2 * 3 * 8,
    "wr_req": 2 * (5 + 1),
    "wr_sect": 2 * (5 + 1) * 8,
    "f_req": 2,
    "ds_req": 1,
    "oo_req": 0,
}
"""What ON_EACH_CPU asks for: requests of 8 sectors, a flush for each fsync, one discard."""
COUNTS_AGAIN = 12.0
"""Seconds in which a back end that logs its counts has done so: every ten."""


def counts(domu: RigDomu, disk: str = FIRST_DISK) -> dict[str, int]:
    """All that the back end's statistics/ shows."""
    script = 'cd "$1/statistics" && grep "" *'
    words = ["sh", "-c", script, "sh", f"{DEVICES}/{domu.device('back', disk)}"]
    text = domu.host.dom0.run(words, timeout=20).text
    return {name: int(value) for name, _, value in (x.partition(":") for x in text.splitlines())}


def two_queues(host: RigHost, lun: RigLun) -> RigDomu:
    two = {"max_queues": 2}
    domu = host.create(disk=lun, ring_pages=1, front_parameters=two, back_parameters=two)
    queues = len(domu.ring().queues)
    assert queues == 2, f"the disk has {queues} queues, not 2"
    return domu


@pytest.mark.stack(domu_vcpus=2)
def test_counts_are_exact(host: RigHost, lun: RigLun) -> None:
    """Of both queues together, since the ends connected; a new connection counts anew."""
    domu = two_queues(host, lun)
    before = counts(domu)
    mark = lun.mark()
    domu.run(ON_EACH_CPU)
    now = counts(domu)
    grown = {name: now[name] - before[name] for name in WORK}
    wrong = {name: (count, WORK[name]) for name, count in grown.items() if count != WORK[name]}
    assert not wrong, f"counts of the back end, and of what was asked for: {wrong}"
    assert set(now) == set(WORK), f"statistics/ shows {sorted(now)}, not {sorted(WORK)}"
    views = domu.queues().front or ()
    idle = [view.number for view in views if not view.req_prod]
    assert not idle, f"queues {idle} were never used: their counts show nowhere"
    served = lun.requests(mark)
    writes = sum(request.operation == "write" for request in served)
    assert writes == WORK["wr_req"], (
        f"the LUN served {writes} writes, the back end counts {WORK['wr_req']}"
    )
    domu.detach()
    domu.attach(lun)
    kept = {name: count for name, count in counts(domu).items() if count and "rd" not in name}
    assert not kept, f"a new connection begins with the counts of the last one: {kept}"


@pytest.mark.long
def test_logged_counts_begin_anew(host: RigHost, lun: RigLun) -> None:
    """`log_stats`: a line every ten seconds with what was asked for since the last one."""
    domu = host.create(disk=lun)
    domu.fill()
    assert counts(domu)["wr_req"] > 0, "the back end counts no write"
    host.log.mark()
    host.set_back(log_stats=1)
    until = Deadline("the back end's line of counts", COUNTS_AGAIN)
    lines = poll(lambda: host.log.lines("xvda-0): oo"), until, pause=0.5)
    assert lines, f"log_stats logs nothing in {until.spent:.0f} s"
    now = counts(domu)
    left = {name: now[name] for name in ("rd_req", "wr_req", "oo_req", "ds_req") if now[name]}
    assert not left, f"counts that were logged do not begin anew: {left}"


def test_mode_and_device_are_shown(host: RigHost, lun: RigLun) -> None:
    other = host.create_lun()
    domu = host.create(disk=lun)
    domu.attach(other, "xvdb", mode="r")
    wrong: dict[str, str] = {}
    for disk, mode in (("xvda", "w"), ("xvdb", "r")):
        name = domu.lun(disk).block
        number = host.dom0.run(["cat", f"/sys/block/{name}/dev"], timeout=20).text.strip()
        major, minor = (int(part) for part in number.split(":"))
        root = f"{DEVICES}/{domu.device('back', disk)}"
        script = ["sh", "-c", "cat $1/mode $1/physical_device", "sh", root]
        shown = host.dom0.run(script, timeout=20).text.split()
        if shown != [mode, f"{major:x}:{minor:x}"]:
            wrong[disk] = f"{shown}, not {[mode, f'{major:x}:{minor:x}']}"
    assert not wrong, f"mode and physical_device in sysfs are wrong: {wrong}"


def test_another_device_is_not_taken(host: RigHost, lun: RigLun) -> None:
    """`physical-device` written again: a running disk keeps its LUN, and dom0 logs it."""
    domu = host.create(disk=lun)
    written = domu.fill()
    other = host.create_lun()
    name = other.block
    number = host.dom0.run(["cat", f"/sys/block/{name}/dev"], timeout=20).text.strip()
    major, minor = (int(part) for part in number.split(":"))
    host.log.mark()
    host.xen.write({f"{domu.domain.back_path()}/physical-device": f"{major:x}:{minor:x}"})
    until = Deadline("dom0's word on another device", 10.0)
    lines = poll(lambda: host.log.lines("changing physical device"), until)
    assert len(lines) == 1, f"dom0 logged {lines} of a device that changed, not one line"
    assert domu.sum() == written, "the disk has other data: it was given another device"
    shown = host.dom0.run(
        ["cat", f"{DEVICES}/{domu.device('back')}/physical_device"], timeout=20
    ).text.strip()
    assert shown != f"{major:x}:{minor:x}", "sysfs shows the device that was not taken"


READ_ON = """
rm -f /run/enough; n=0
[ -d /sys/kernel/debug/xen-blkback ] || mount -t debugfs none /sys/kernel/debug
while [ ! -e /run/enough ]; do
    for file in $1/vbd-*/statistics/* $1/vbd-*/mode $1/vbd-*/physical_device \
                /sys/kernel/debug/xen-blkback/*/queue-*; do
        { read -r line < $file; } 2> /dev/null && n=$((n + 1))
    done
done
echo $n
"""
CYCLES = 4
LEAST_READ = 100


@contextlib.contextmanager
def read_all_the_time(host: RigHost) -> Iterator[None]:
    """dom0 reads all that both sysfs and debugfs show of back ends, again and again."""
    reader = host.dom0.spawn(["sh", "-c", READ_ON, "sh", DEVICES])
    try:
        yield
    finally:
        host.dom0.run("touch /run/enough", timeout=20)
        ended = reader.wait(30)
    assert ended.status == 0, f"the reader of sysfs and debugfs ended: {ended}"
    number = int(reader.read(64))
    assert number >= LEAST_READ, f"only {number} files were read while disks came and went"


@pytest.mark.stack(domu_vcpus=2)
def test_disks_come_and_go_while_they_are_read(host: RigHost, lun: RigLun) -> None:
    """dom0 reads of rings that are made and taken away (CVE-2026-100082 of stock drivers, and the
    series' own files in debugfs). The fixture fails the test for an oops."""
    domu = two_queues(host, lun)
    with read_all_the_time(host):
        for _ in range(CYCLES):
            written = domu.fill()
            assert domu.sum() == written, "a disk that is looked at has other data"
            domu.detach()
            domu.wait_gone()
            domu.attach(lun)
        for _ in range(CYCLES):
            domu.unbind_back()
            domu.bind_back()
            domu.wait_connected()
    alive = host.dom0.run("ls /sys/bus/xen-backend/devices", timeout=20).text.split()
    assert domu.device("back") in alive, f"the disk is gone: {alive}"
    assert domu.fill() == domu.sum(), "a disk that was looked at has other data"
