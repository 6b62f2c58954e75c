"""What a disk is, is read again after a resume: its back end may serve another one by then.

The back end of back-ends/other-keys.patch says what it is told to when it connects.
"""

from __future__ import annotations

import pytest
from back_ends import back_end

from emu.errors import NotHeld
from emu.rig import RigDomu, RigHost, RigLun

SMALL = pytest.mark.stack(kernel="lab", domu_memory=64)
"""The less memory, the sooner it is saved and restored."""
FILES = ("ro", "queue/logical_block_size", "queue/physical_block_size", "size")
SECTORS = str(256 << 11)
MOVES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("info=4 sectors=8192", ("1", "512", "512", "8192"), "xvda: read-only"),
    ("", ("0", "512", "512", SECTORS), "xvda: can be written"),
    (
        "physical-sector-size=4096 sectors=100000",
        ("0", "512", "4096", "100000"),
        "xvda: sectors of 512 bytes, physical ones of 4096",
    ),
    ("sectors=200000", ("0", "512", "512", "200000"), "physical ones of 512"),
)
"""Keys of each back end, what the domU's disk is then, and a line of its log."""
WRITE = "dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct"
READ = "[ $(dd if=/dev/xvda bs=4k count=1 iflag=direct | wc -c) = 4096 ]"


def seen(domu: RigDomu) -> tuple[str, ...]:
    script = "cd /sys/block/xvda; cat " + " ".join(FILES)
    return tuple(domu.run(script).split())


def status(domu: RigDomu, script: str) -> int | None:
    return domu.channel.run(["sh", "-c", f"{script} 2> /dev/null"], timeout=30, check=False).status


@SMALL
def test_disk_is_what_its_new_back_end_says(host: RigHost, lun: RigLun) -> None:
    """At once, and with a line in the log. Stock reads none of it, but has the size at times."""
    domu = host.create()
    host.load_back(back_end(host, "other-keys"))
    domu.attach(lun)
    wrong: dict[str, str] = {}
    for keys, want, line in MOVES:
        host.set_back(keys=keys)
        domu.log.mark()
        domu.save_and_restore()
        if (now := seen(domu)) != want:
            wrong[keys] = ", ".join(
                f"{name} is {one}, not {other}"
                for name, one, other in zip(FILES, now, want, strict=True)
                if one != other
            )
        elif not domu.log.lines(line):
            wrong[keys] = f"no line says {line!r}"
        elif (status(domu, WRITE) == 0) != (want[0] == "0"):
            wrong[keys] = "a write " + (
                "fails" if want[0] == "0" else "of a read-only disk is done"
            )
        elif status(domu, READ):
            wrong[keys] = "a read fails"
    assert not wrong, "restored on a back end with other keys:\n" + "\n".join(
        f"{keys or 'its own'}: {words}" for keys, words in wrong.items()
    )


@SMALL
def test_disk_has_the_size_that_its_lun_got_meanwhile(host: RigHost, lun: RigLun) -> None:
    """It grows and shrinks while the domU is saved; the data stays. Stock back ends offer the new
    size, and a stock front end may keep the old one."""
    domu = host.create(disk=lun)
    written = domu.fill()
    wrong: list[str] = []
    for mib in (300, 200):
        domu.log.mark()
        domu.save()
        lun.resize(mib)
        domu.restore()
        if (size := seen(domu)[-1]) != str(mib << 11):
            wrong.append(f"of {mib} MiB: the disk has {size} sectors, not {mib << 11}")
        elif not domu.log.lines("xvda: detected capacity change"):
            wrong.append(f"of {mib} MiB: no line says that the capacity has changed")
        elif status(domu, f"dd if=/dev/zero of=/dev/xvda bs=1M seek={mib - 1} oflag=direct") != 1:
            wrong.append(f"of {mib} MiB: a write to the end and beyond is no error")
        elif domu.sum() != written:
            wrong.append(f"of {mib} MiB: the data is another")
    assert not wrong, "resized while the domU was saved:\n" + "\n".join(wrong)


@SMALL
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
def test_larger_sectors_end_the_disk(host: RigHost, lun: RigLun, times: int) -> None:
    """Whoever uses it may ask for a part of one: an error, and another try when they are gone."""
    domu = host.create()
    host.load_back(back_end(host, "other-keys"))
    domu.attach(lun)
    written = domu.fill()
    for _ in range(times):
        host.set_back(keys="sector-size=4096")
        with pytest.raises(NotHeld, match="sectors of 4096 bytes, which were of 512"):
            domu.save_and_restore()
        for script in (READ, WRITE):
            ended = status(domu, script)
            assert ended, f"`{script}`: a disk whose sectors are larger than it knows does that"
    host.set_back(keys="")
    domu.detach()
    domu.wait_gone()
    domu.attach(lun)
    assert domu.sum() == written, "the disk that was attached anew holds other data"
