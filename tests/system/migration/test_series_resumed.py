"""The series: what was under way when a guest moved is done once; the disk is the new back end's.

The domU is saved while the LUN holds its requests, so that they are on the ring, and restored
under a back end that offers something else.
"""

from __future__ import annotations

import programs
import pytest
from back_ends import back_end
from driver_checks import check_data, check_holds, check_pages, check_queues, check_quiet
from migration_checks import check_hardware_queues

from emu.deadline import Deadline, poll, poll_moving
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun
from emu.rig.disks import OUTSTANDING_WITHIN

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
"""Seconds after a move in which one more of the writes that were under way has ended."""


def write_held(domu: RigDomu, on_ring: int | None, flag: str = "", cpu: int = 0) -> None:
    """Ask for all blocks to be written, which go no further than the LUN.

    `on_ring` is the number of requests that reach the first ring; None where it is unknown.
    They are asked for on one CPU, whose queue they go to where each has its own.
    """
    words = [str(cpu), FIRST_DISK, str(REQUESTS), str(BLOCK), *([flag] if flag else [])]
    domu.channel.run(["sh", "-c", START, "sh", *words], timeout=60)
    if on_ring is not None:
        domu.wait_outstanding(on_ring)


def wait_full(domu: RigDomu, queue: int) -> None:
    """Wait until the LUN's requests fill a queue's ring, of one page, and no other."""

    def on_rings() -> list[int | None]:
        return [view.outstanding for view in domu.queues().front or ()]

    until = Deadline("a full ring", OUTSTANDING_WITHIN)
    full = [32 if number == queue else 0 for number in range(queue + 1)]
    now = poll(on_rings, until, until=lambda now: now == full, pause=0.1)
    assert now == full, (
        f"requests on the queues' rings are {now}, not {full}: those of the second CPU fill the "
        f"ring of queue {queue}"
    )


def check_written(domu: RigDomu) -> None:
    """Every write has ended well, and the disk holds what was written."""
    moving = poll_moving(
        lambda: domu.channel.run(ENDED, timeout=20, check=False).text.split(),
        "the writes to end",
        until=lambda words: len(words) >= 3,
        still=ENDED_WITHIN,
        within=10 * ENDED_WITHIN,
        pause=0.2,
    )
    words = moving.value
    left = REQUESTS - int(words[0])
    assert len(words) >= 3 or not moving.stopped, (
        f"{left} of {REQUESTS} writes under way when the guest moved never end: {moving}"
    )
    assert len(words) >= 3, (
        f"{left} of {REQUESTS} writes under way when the guest moved have not ended, {moving}"
    )
    assert words[1:] == ["0", "0"], f"{words[1]} writes under way when the guest moved have failed"
    check = ["/tmp/blocks", "check", f"/dev/{FIRST_DISK}", str(REQUESTS), str(BLOCK)]
    lines = domu.channel.run(check, timeout=120, check=False).text.splitlines()
    wrong = [line.split()[0] for line in lines if "wrong" in line]
    assert len(lines) == REQUESTS, f"{len(lines)} of {REQUESTS} blocks could be read"
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
    check_pages(domu.ring(lun), first)
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
    check_pages(domu.ring(lun), then)
    check_quiet(domu)


@SMALL
def test_ring_that_grew_can_be_filled(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=16, max_ring_pages=1)
    check_pages(domu.ring(lun), 1)
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
    limits = domu.queue_limits(*WITH_ALL)
    assert limits == WITH_ALL, f"the disk has not all that its back end allows: {limits}"
    written = domu.fill(lun)
    domu.save_and_restore(back=back_end(host, less))
    now = domu.queue_limits(*WITH_ALL)
    assert now == WITH_ALL | known, f"the disk keeps limits of the old back end: {now}"
    check_holds(domu, written, lun)
    domu.save_and_restore(back="patched")
    now = domu.queue_limits(*WITH_ALL)
    assert now == WITH_ALL, f"the disk has not all that the new back end allows: {now}"
    check_holds(domu, written, lun)
    check_data(domu, lun)


@SMALL
@pytest.mark.parametrize("back", ["no-cache", "patched"])
def test_flushes_under_way_end_well(host: RigHost, lun: RigLun, back: str) -> None:
    """Those of synchronous writes: by the new back end, or by themselves if that has no cache."""
    domu = host.create(disk=lun, ring_pages=4)
    programs.put("blocks", domu.channel, host.cache)
    with lun.held("flushes"):
        write_held(domu, None, "sync")
        lun.await_outstanding(1)
        with domu.saving():
            lun.release()
    host.load_back(back_end(host, back) if back != "patched" else back)
    since = lun.mark()
    domu.restore()
    check_written(domu)
    flushes = sum(request.operation == "flush" for request in lun.requests(since))
    assert (flushes > 0) == (back == "patched"), (
        f"{flushes} flushes came to the LUN by the new back end {back}"
    )


@SMALL
def test_persistent_grants_follow_the_back_end(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)

    def kept() -> int:
        """Pages that dom0 keeps mapped when all is quiet, beside the ring.

        After 4 MiB as many as they will ever be; after one it depends on how the requests fell.
        """
        check_data(domu, lun, 4)
        return len(host.xen.grants().of(domu.domain.domid).grants)

    many = kept()
    for persistent in (0, 1):
        domu.save_and_restore(feature_persistent=persistent)
        now = kept()
        assert (now >= many) == bool(persistent), (
            f"dom0 keeps {now} pages mapped under a back end with feature_persistent "
            f"{persistent}, and kept {many} under one that has it"
        )
    domu.run("echo 0 > /sys/module/xen_blkfront/parameters/feature_persistent")
    domu.save_and_restore()
    now = kept()
    assert now < many, (
        f"dom0 keeps {now} pages mapped of a front end whose feature_persistent was switched off"
    )
    lines = domu.log.lines("persistent grants: ")
    assert lines, "the front end logs nothing of persistent grants"
    line = lines[-1]
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
    check_queues(domu.ring(lun), first)
    programs.put("blocks", domu.channel, host.cache)
    with lun.held():
        write_held(domu, None, cpu=1)  # its queue is the one that goes, or comes
        wait_full(domu, first - 1)
        with domu.saving():
            lun.release()
    host.load_back(max_queues=then)
    domu.restore()
    check_written(domu)
    check_queues(domu.ring(lun), then)
    check_hardware_queues(domu, then)
    check_data(domu, lun)
