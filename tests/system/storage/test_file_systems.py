"""ext4 in a domU, on the kernel that people have: its journal, its discards, its freezing."""

from __future__ import annotations

import zlib

import pytest
from migration_checks import check_ring

from emu.deadline import Deadline, poll
from emu.errors import InputError
from emu.rig import RigDomu, RigHost

SECTOR = 512
WRITES = """
i=0
while [ ! -e /run/stop ]; do
    i=$((i + 1))
    head -c 65536 /dev/urandom > /tmp/data
    dd if=/tmp/data of=$1/file$i bs=64k conv=$2 2> /tmp/dd || { cat /tmp/dd >&2; exit 1; }
    sha256sum < /tmp/data | sed "s/-/file$i/"
    usleep 100000
done
"""
"""Files that are written to $1 one after another; each is named, with its sum, when it has been
written and, where $2 is fsync, when that has returned."""
WRITTEN_BACK_SOON = (
    "cd /proc/sys/vm && echo 5 | tee dirty_writeback_centisecs dirty_expire_centisecs"
)
DELAY = 200
"""Milliseconds that the LUN takes for a write: some are on the ring whenever the domU is saved."""
LEAST = 5
"""Files that are written before something happens, and after it."""
WITHIN = 30.0
HELD = b"written before the file system was frozen\n".ljust(SECTOR, b".")


def await_files(domu: RigDomu, number: int) -> int:
    """Wait until `number` files more have been written; how many there are."""
    count = "[ $(wc -l < /run/sums) -ge $1 ] && wc -l < /run/sums"
    now = int(domu.run("wc -l < /run/sums"))
    return int(domu.channel.wait_until(count, "files to be written", WITHIN, str(now + number)))


def check_files(domu: RigDomu, path: str, sums: str, after: str) -> None:
    """The files on `path` hold what was written; `after` is what happened since."""
    domu.channel.put(sums.encode(), "/tmp/sums")
    lines = domu.run(f"cd {path} && sha256sum -c /tmp/sums 2>&1 || true", timeout=WITHIN)
    wrong = [line for line in lines.splitlines() if not line.endswith(": OK")]
    assert not wrong, f"files are not what was written, after {after}: {wrong}"


def test_ext4_goes_on_over_a_restore_with_another_ring(host: RigHost) -> None:
    lun = host.create_lun(size_mib=32)
    domu = host.create(disk=lun, ring_pages=4)
    with domu.mounted(lun) as path:
        domu.channel.put(WRITES.encode(), "/run/writes")
        # No fsync(): who waits for the disk, uninterruptible, can't be frozen, and is not saved.
        domu.run(WRITTEN_BACK_SOON)
        domu.run(f"setsid sh /run/writes {path} notrunc > /run/sums 2> /run/failed &")
        lun.delay(DELAY, "writes")
        before = await_files(domu, LEAST)
        domu.wait_outstanding(1, or_more=True)
        domu.save_and_restore(max_ring_pages=1)
        lun.clear()
        check_ring(domu, 1)
        await_files(domu, LEAST)
        domu.channel.wait_until(
            "touch /run/stop; ! pidof dd > /dev/null", "the writer to stop", WITHIN
        )
        failed = domu.run("cat /run/failed")
        assert not failed, f"a write to ext4 failed over the restore: {failed}"
        sums = domu.run("cat /run/sums")
    written = len(sums.splitlines())
    assert written >= before + LEAST, f"{before} files before the restore, {written} in the end"
    lun.fsck()
    with domu.mounted(lun, make=False) as path:
        check_files(domu, path, sums, "a restore with another ring")
        errors = domu.log.lines("EXT4-fs error")
        assert not errors, f"ext4 logged errors: {errors}"


def test_ext4_trims_and_freezes(host: RigHost) -> None:
    lun = host.create_lun(size_mib=32)
    domu = host.create(disk=lun)
    with pytest.raises(InputError, match="ext4, not 'ntfs'"), domu.mounted(lun, "ntfs"):
        pass
    with domu.mounted(lun) as path:
        domu.run(f"head -c 8388608 /dev/urandom > {path}/large && sync && rm {path}/large && sync")
        mark = lun.mark()
        trimmed = domu.trim(path)
        unmaps = [each for each in lun.requests(mark) if each.operation == "unmap"]
        unmapped = sum(each.blocks for each in unmaps) * SECTOR
        assert trimmed > 20 << 20, f"fstrim trimmed {trimmed} bytes of an empty disk of 32 MiB"
        assert unmapped == trimmed, (
            f"fstrim trimmed {trimmed} bytes, the LUN unmapped {unmapped}: {[*map(str, unmaps)]}"
        )

        mark = lun.mark()
        domu.channel.run(f"cat > {path}/held", input=HELD, timeout=20)
        with domu.frozen(path):
            sums = {crc for each in lun.requests(mark).writes for crc in each.sums}
            assert zlib.crc32(HELD) in sums, "a file is not on the LUN whose file system is frozen"
            lun.fsck()
            mark = lun.mark()
            writer = domu.channel.spawn(f"dd if=/proc/version of={path}/late conv=fsync")
            blocked = 'pid=$(pidof dd) && grep -q ") D " /proc/$pid/stat'
            domu.channel.wait_until(blocked, "the writer to wait for the frozen file system", 20)
            late = lun.requests(mark).writes
            assert not late, f"a frozen file system wrote: {[*map(str, late)]}"
            assert writer.ended is None, f"a write to a frozen file system {writer.ended}"
        ended = writer.wait(20)
        assert ended.status == 0, f"a write that waited for the file system to thaw {ended}"
        same = domu.run(f"cmp /proc/version {path}/late && echo same")
        assert same == "same\n", "what was written to the thawed file system is not there"
    lun.fsck()


def test_journal_of_a_destroyed_domu_replays(host: RigHost) -> None:
    lun = host.create_lun(size_mib=32)
    domu = host.create(disk=lun)
    told = bytearray()
    with domu.mounted(lun) as path:
        domu.channel.put(WRITES.encode(), "/run/writes")
        domu.channel.spawn(["sh", "/run/writes", path, "fsync"], on_stdout=told.extend)
        until = Deadline("files to be written", WITHIN)
        number = poll(lambda: told.count(b"\n"), until, until=lambda now: now >= LEAST)
        assert number >= LEAST, f"{number} files were written in {until.spent:.0f} s, not {LEAST}"
        domu.destroy()
    sums, _, _ = told.rpartition(b"\n")
    other = host.create(disk=lun, memory=128)
    with other.mounted(lun, make=False) as path:
        logged = other.log.lines("EXT4-fs")
        assert any("recovery complete" in line for line in logged), (
            f"the journal of a domU that was destroyed while it wrote was not replayed: {logged}"
        )
        check_files(other, path, f"{sums.decode()}\n", "the domU was destroyed")
    lun.fsck()
