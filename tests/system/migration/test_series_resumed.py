"""The series: what was under way when a guest moved is done once; the disk is the new back end's.

The domU is saved while the LUN holds its requests, so that they are on the ring, and restored
under a back end that offers something else.
"""

from __future__ import annotations

import programs
import pytest
from back_ends import back_end
from migration_checks import check_hardware_queues

from emu.deadline import Deadline, poll
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun

SMALL = pytest.mark.stack(kernel="lab", domu_memory=64)
"""The less memory, the sooner it is saved and restored."""
WITH_SCHEDULER = pytest.mark.stack(kernel="debian", domu_memory=128)
"""The lab kernel has no scheduler for a disk: a process that asks for more than the ring holds
waits in the system call, where it can't be frozen, and the guest is not suspended."""
REQUESTS = 40
"""More than a ring of one page holds: the others wait in the scheduler."""
BLOCK = 64 * 1024
"""Bytes: 16 segments, which takes an indirect request."""
START = """
cpu=$1; shift
cd /sys/block/$1/queue && grep -q mq-deadline scheduler && echo mq-deadline > scheduler
setsid taskset -c "$cpu" \
    sh -c '/tmp/blocks write /dev/$1 $2 $3 $4 > /tmp/written 2>&1; echo $? > /tmp/status' \
    sh "$@" > /dev/null 2>&1 &
"""
ENDED = "touch /tmp/written; wc -l < /tmp/written; grep -c wrong /tmp/written; cat /tmp/status"
ENDED_WITHIN = 40.0
"""Seconds after a move in which every write that was under way has ended."""


def write_held(domu: RigDomu, on_ring: int | None, flag: str = "", cpu: int = 0) -> None:
    """Ask for all blocks to be written, which go no further than the LUN.

    `on_ring` is the number of requests that reach the first ring; None where it is unknown.
    They are asked for on one CPU, whose queue they go to where each has its own.
    """
    words = [str(cpu), FIRST_DISK, str(REQUESTS), str(BLOCK), *([flag] if flag else [])]
    domu.channel.run(["sh", "-c", START, "sh", *words], timeout=60)
    if on_ring is not None:
        domu.wait_outstanding(on_ring)


def check_written(domu: RigDomu) -> None:
    """Every write has ended well, and the disk holds what was written."""
    until = Deadline("the writes to end", ENDED_WITHIN)
    words = poll(
        lambda: domu.channel.run(ENDED, timeout=20, check=False).text.split(),
        until,
        until=lambda words: len(words) >= 3,
        pause=0.2,
    )
    assert len(words) >= 3, (
        f"{REQUESTS - int(words[0])} of {REQUESTS} writes under way when the guest moved never end"
    )
    assert words[1:] == ["0", "0"], f"{words[1]} writes under way when the guest moved have failed"
    check = ["/tmp/blocks", "check", f"/dev/{FIRST_DISK}", str(REQUESTS), str(BLOCK)]
    lines = domu.channel.run(check, timeout=120, check=False).text.splitlines()
    wrong = [line.split()[0] for line in lines if "wrong" in line]
    assert len(lines) == REQUESTS
    assert not wrong, f"writes of these blocks were acknowledged, but the disk differs: {wrong}"


@pytest.mark.parametrize(
    ("first", "then", "flag", "pieces"),
    [
        pytest.param(2, 1, "", 1, id="shrinks", marks=[SMALL, pytest.mark.quick]),
        pytest.param(1, 2, "", 1, id="grows", marks=[WITH_SCHEDULER, pytest.mark.long]),
        pytest.param(16, 1, "sync", 1, id="shrinks, synchronous", marks=SMALL),
        pytest.param(1, 1, "", 2, id="no indirect requests", marks=WITH_SCHEDULER),
        pytest.param(
            2, 1, "sync", 2, id="no indirect requests, synchronous", marks=[SMALL, pytest.mark.long]
        ),
    ],
)
def test_requests_under_way_are_done_once(
    host: RigHost, lun: RigLun, first: int, then: int, flag: str, pieces: int
) -> None:
    domu = host.create(disk=lun, ring_pages=16, max_ring_pages=first)
    assert domu.ring(lun).pages == first
    programs.put("blocks", domu.channel, host.cache)
    with lun.held():
        write_held(domu, min(32 * first, REQUESTS), flag)
        with domu.saving():
            lun.release()
    if pieces == 1:
        host.set_back(max_ring_pages=then)
    else:
        host.load_back(back_end(host, "no-indirect"), max_ring_pages=then)
    domu.restore()
    check_written(domu)
    done = domu.statistic("wr_req")
    assert done == REQUESTS * pieces, (
        f"{REQUESTS} writes of {pieces} pieces were under way, and done {done} times in all"
    )
    assert domu.ring(lun).pages == then
    assert domu.errors() == []


@SMALL
def test_ring_that_grew_can_be_filled(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=16, max_ring_pages=1)
    assert domu.ring(lun).pages == 1
    domu.save_and_restore(max_ring_pages=16)
    programs.put("blocks", domu.channel, host.cache)
    with lun.held():
        write_held(domu, REQUESTS)
    check_written(domu)


WITH_ALL = {"max_segments": "32", "max_hw_sectors_kb": "128", "write_cache": "write back"}
LESS = [
    pytest.param(
        "no-indirect", {"max_segments": "11", "max_hw_sectors_kb": "44"}, id="indirect requests"
    ),
    pytest.param("no-cache", {"write_cache": "write through"}, id="cache"),
]


@SMALL
@pytest.mark.parametrize(("less", "known"), LESS)
def test_limits_follow_the_back_end(
    host: RigHost, lun: RigLun, less: str, known: dict[str, str]
) -> None:
    domu = host.create(disk=lun, ring_pages=16, max_ring_pages=4)
    assert domu.queue_limits(*WITH_ALL) == WITH_ALL
    written = domu.fill(lun)
    domu.save_and_restore(back=back_end(host, less))
    now = domu.queue_limits(*WITH_ALL)
    assert now == WITH_ALL | known, f"the disk keeps limits of the old back end: {now}"
    assert domu.sum(lun) == written
    domu.save_and_restore(back="patched")
    now = domu.queue_limits(*WITH_ALL)
    assert now == WITH_ALL, f"the disk has not all that the new back end allows: {now}"
    assert domu.sum(lun) == written
    assert domu.fill(lun) == domu.sum(lun)


@SMALL
def test_persistent_grants_follow_the_back_end(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)

    def kept() -> int:
        """Pages that dom0 keeps mapped when all is quiet, beside the ring.

        After 4 MiB as many as they will ever be; after one it depends on how the requests fell.
        """
        assert domu.fill(lun, 4) == domu.sum(lun, 4)
        return len(host.xen.grants().of(domu.domain.domid).grants)

    many = kept()
    for persistent in (0, 1):
        domu.save_and_restore(feature_persistent=persistent)
        assert (kept() >= many) == bool(persistent)
    domu.run("echo 0 > /sys/module/xen_blkfront/parameters/feature_persistent")
    domu.save_and_restore()
    assert kept() < many
    line = domu.log.lines("persistent grants: ")[-1]
    assert "persistent grants: disabled" in line, f"not read again after the move: {line}"


@WITH_SCHEDULER
@pytest.mark.stack(domu_vcpus=2)
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(2, 1, id="fewer"),
        pytest.param(1, 2, id="more", marks=pytest.mark.long),
    ],
)
def test_queues_follow_the_back_end(host: RigHost, lun: RigLun, first: int, then: int) -> None:
    domu = host.create(
        disk=lun,
        ring_pages=1,
        front_parameters={"max_queues": 2},
        back_parameters={"max_queues": first},
    )
    assert len(domu.ring(lun).queues) == first
    programs.put("blocks", domu.channel, host.cache)
    with lun.held():
        write_held(domu, None, cpu=1)  # its queue is the one that goes, or comes
        with domu.saving():
            lun.release()
    host.load_back(max_queues=then)
    domu.restore()
    check_written(domu)
    assert len(domu.ring(lun).queues) == then
    check_hardware_queues(domu, then)
    assert domu.fill(lun) == domu.sum(lun)
