"""The series: a flush that fails, fails for whoever asked; one that is unknown is done without.

Stock front ends of 6.1 to 7.3 report a flush that failed at the LUN as done, and send none any
more; a barrier with data that the back end does not know is reported as done, and its data lost; a
large one crashes the guest.
"""

from __future__ import annotations

import zlib

import programs
import pytest
from back_ends import back_end
from driver_checks import refusals

from emu.deadline import Deadline, poll
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun

KIB = 1024
SECTOR = 512
LARGE = 64 * KIB
"""Bytes: 16 segments, more than a direct request has."""
ONE_DRAINS = 3.0
"""Seconds in which the second of two barriers would go wrong; it looks again every second."""
BOTH_SENT = 20.0
"""Seconds in which what a test asks for has reached the back end."""


class OneRequest:
    """One request after the other from a domU, and what became of it."""

    def __init__(self, domu: RigDomu) -> None:
        self.domu = domu
        self.program = programs.put("one-request", domu.channel, domu.host.cache)

    def ask(self, *words: str | int, disk: str = FIRST_DISK) -> str:
        """ "done", or the error that the caller got."""
        command = [self.program, f"/dev/{disk}", *map(str, words)]
        return self.domu.channel.run(command, timeout=60).text.strip()

    def written(self, lun: RigLun, offset: int, size: int) -> bool:
        """Whether the LUN has what `write` writes there (dom0 may have older data in memory)."""
        sums = lun.sums(offset // SECTOR, size // SECTOR)
        return set(sums) == {zlib.crc32(b"Z" * SECTOR)}


def flushes(lun: RigLun, since: int) -> int:
    """How many flushes the LUN has served since a mark."""
    return sum(one.operation == "flush" for one in lun.requests(since))


def check(wrong: dict[str, str], what: str, got: object, want: object, flaw: str) -> None:
    if got != want:
        wrong[what] = f"{flaw}: {got}, not {want}"


def test_failed_flush_reaches_the_caller(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun)
    one, wrong = OneRequest(domu), dict[str, str]()
    asked = one.ask("fsync")
    assert asked == "done", f"an fsync of a good LUN ended with {asked}"
    lun.fail(kinds="flushes")
    for time in ("first", "second"):
        check(wrong, f"{time} fsync", one.ask("fsync"), "EIO", "its flush failed at the LUN")
    lun.clear()
    mark = lun.mark()
    check(wrong, "fsync when the LUN works", one.ask("fsync"), "done", "it should succeed again")
    check(wrong, "flushes after that", flushes(lun, mark), 1, "one fsync sends to the LUN")
    cache = domu.queue_limits("write_cache")["write_cache"]
    check(wrong, "cache", cache, "write back", "the disk's cache mode has changed")
    domu.attach(lun, "xvdb", mode="r")
    mark = lun.mark()
    asked = one.ask("fsync", disk="xvdb")
    check(wrong, "read-only disk", asked, "done", "fsync where nothing was written")
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


def test_barriers_with_data(host: RigHost, lun: RigLun) -> None:
    """Barriers alone: they fail, are larger than a direct request, turn out to be unknown."""
    host.load_back(back_end(host, "cache"), flush_cache=0)
    domu = host.create(disk=lun)
    one, wrong = OneRequest(domu), dict[str, str]()
    asked = one.ask("write", 0, 4 * KIB, 0, "dsync")
    assert asked == "done", f"a barrier on a good LUN ended with {asked}"
    lun.fail(kinds="flushes")
    asked = one.ask("write", 4 * KIB, 4 * KIB, 0, "dsync")
    check(wrong, "barrier that fails", asked, "EIO", "a write that fails at the LUN")
    lun.clear()
    mark = lun.mark()
    asked = one.ask("write", 8 * KIB, 4 * KIB, 0, "dsync")
    check(wrong, "barrier when the LUN works", asked, "done", "it should succeed again")
    check(wrong, "its flush", flushes(lun, mark) > 0, True, "a barrier flushes the LUN")

    asked = one.ask("write", LARGE, LARGE, 0, "dsync")
    check(wrong, "large barrier", asked, "done", "a synchronous write of 64 KiB")
    check(wrong, "its data", one.written(lun, LARGE, LARGE), True, "the LUN has all of it")

    host.set_back(refuse_flush=1)
    for offset, size in ((2 * LARGE, 4 * KIB), (3 * LARGE, 4 * KIB), (4 * LARGE, LARGE)):
        asked = one.ask("write", offset, size, 0, "dsync")
        check(wrong, f"unknown barrier at {offset}", asked, "done", "it can be a plain write")
        landed = one.written(lun, offset, size)
        check(wrong, f"data of that at {offset}", landed, True, "the LUN has what was done")
    check(wrong, "its line", refusals(domu), ["barrier op failed"], "one says what is not known")
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


def test_unknown_flush_is_done_without(host: RigHost, lun: RigLun) -> None:
    """The back end notes it where it may not sleep, and would write to xenstore."""
    host.load_back(back_end(host, "cache"), refuse_flush=1)
    domu = host.create(disk=lun)
    one = OneRequest(domu)
    asked = [one.ask("fsync") for _ in range(3)]
    assert asked == ["done"] * 3, f"fsync without flushes: {asked}"
    assert domu.statistic("f_req") == 1, (
        f"{domu.statistic('f_req')} flushes were sent to a back end that knows none"
    )
    said = refusals(domu)
    assert said == ["flush op failed"], f"of the flush that is not known the front end says {said}"


@pytest.mark.stack(domu_vcpus=2)
def test_barriers_of_two_queues(host: RigHost, lun: RigLun) -> None:
    """Each waits for the writes of its own queue, also when the other's are done."""
    two = {"max_queues": 2}
    host.load_back(back_end(host, "cache"), flush_cache=0, **two)
    domu = host.create(disk=lun, front_parameters=two)
    program = OneRequest(domu).program

    def start(cpu: int, *words: str | int) -> None:
        command = " ".join(map(str, (program, f"/dev/{FIRST_DISK}", *words)))
        domu.channel.run(f"setsid taskset -c {cpu} {command} > /tmp/{cpu} 2>&1 &", timeout=30)

    mark = lun.mark()
    with lun.held("writes"):
        for cpu in (0, 1):
            start(cpu, "write", cpu * LARGE, 4 * KIB)
        lun.await_outstanding(2)
        for cpu in (0, 1):
            start(cpu, "fsync")
        domu.wait_outstanding(4)
        sent = poll(
            lambda: domu.statistic("f_req"),
            Deadline("both barriers", BOTH_SENT),
            until=lambda now: now == 2,
            pause=0.1,
        )
        assert sent == 2, f"{sent} of 2 barriers have reached the back end"
        assert flushes(lun, mark) == 0, "a barrier did not wait for the write before it"
        lun.release(1)
        early = poll(
            lambda: flushes(lun, mark),
            Deadline("a flush too many", ONE_DRAINS),
            until=lambda now: now > 1,
            pause=0.2,
        )
        assert early == 1, (
            f"{early} flushes have reached the LUN while a write that came before the second "
            "has not been done"
        )
    domu.wait_outstanding(0)
    seen = flushes(lun, mark)
    assert seen == 2, f"{seen} flushes came to the LUN for two"


def test_buffers_are_aligned_to_sectors(host: RigHost, lun: RigLun) -> None:
    """A buffer in the middle of a sector is refused at once, where the back end would fail it."""
    large = host.create_lun(sector=4096)
    domu = host.create(disk=[lun, large])
    one, wrong = OneRequest(domu), dict[str, str]()
    for disk, shift, want in (
        (lun, 0, "done"),
        (lun, 512, "done"),
        (large, 0, "done"),
        (large, 512, "EINVAL"),
        (large, 2048, "EINVAL"),
    ):
        for verb in ("read", "write"):
            asked = one.ask(verb, 4 * KIB, 16 * KIB, shift, disk=domu.disk(disk))
            name = f"{verb} of {disk.name} from a buffer {shift} bytes into a page"
            check(wrong, name, asked, want, "it ended as")
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
