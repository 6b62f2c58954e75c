"""The series: what was under way when a guest moved is done once; the disk is the new back end's.

The domU is saved while the LUN stands still, so that its requests lie on the ring, and restored
under a back end that offers something else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from ends import DISK, Ends
from moves import (
    back_end,
    blocks,
    held,
    reconnected,
    restore,
    save,
    saving,
    served,
    wait_outstanding,
)

SMALL = pytest.mark.stack(kernel="lab", domu_memory=64)
"""The less memory, the sooner it is saved and restored."""
WITH_SCHEDULER = pytest.mark.stack(kernel="debian", domu_memory=128)
"""The lab kernel has no scheduler for a disk: who asks for more than the ring holds waits in the
system call, where he can't be frozen, and the guest is not suspended."""
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


@contextlib.contextmanager
def moved(ends: Ends) -> Iterator[None]:
    """The guest's console driver prints a WARNING of its own when it has a second console."""
    with ends.stack.machine.watch.allow("kernel WARNING", guest=ends.stack.domain.name):
        yield


def set_limit(ends: Ends, pages: int) -> None:
    limit = "/sys/module/xen_blkback/parameters/max_ring_pages"
    ends.channel("back").run(f"echo {pages} > {limit}", timeout=20)


def write_held(ends: Ends, on_ring: int | None, flag: str = "", cpu: int = 0) -> None:
    """Ask for all blocks to be written, which go no further than the LUN.

    `on_ring` is the number of requests that reach the first ring; None where it is unknown.
    They are asked for on one CPU, whose queue they go to where each has its own.
    """
    words = [str(cpu), DISK, str(REQUESTS), str(BLOCK), *([flag] if flag else [])]
    ends.channel("front").run(["sh", "-c", START, "sh", *words], timeout=60)
    if on_ring is not None:
        wait_outstanding(ends.stack.domain, on_ring)


def check_written(ends: Ends) -> None:
    """Every write has ended well, and the disk holds what was written."""
    domu = ends.channel("front")
    until = time.monotonic() + ENDED_WITHIN
    while len(said := domu.run(ENDED, timeout=20, check=False).text.split()) < 3:
        lost = REQUESTS - int(said[0])
        assert time.monotonic() < until, (
            f"{lost} of {REQUESTS} writes under way when the guest moved never end"
        )
        time.sleep(0.2)
    assert said[1:] == ["0", "0"], f"{said[1]} writes under way when the guest moved have failed"
    words = ["/tmp/blocks", "check", f"/dev/{DISK}", str(REQUESTS), str(BLOCK)]
    lines = domu.run(words, timeout=120, check=False).text.splitlines()
    wrong = [line.split()[0] for line in lines if "wrong" in line]
    assert len(lines) == REQUESTS
    assert not wrong, f"the guest was told that these blocks are written, and they are not: {wrong}"


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
    ends: Ends, first: int, then: int, flag: str, pieces: int
) -> None:
    ends.load("back", max_ring_pages=first)
    ends.load("front", max_ring_pages=16)
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == first
    blocks(ends)
    with moved(ends):
        with contextlib.ExitStack() as hold:
            hold.enter_context(held(ends))
            write_held(ends, min(32 * first, REQUESTS), flag)
            with saving(ends):
                hold.close()
        if pieces == 1:
            set_limit(ends, then)
        else:
            ends.load("back", back_end(ends.host, "no-indirect"), max_ring_pages=then)
        restore(ends)
        reconnected(ends)
        check_written(ends)
        done = served(ends, "wr_req")
        assert done == REQUESTS * pieces, (
            f"{REQUESTS} writes of {pieces} pieces were under way, and done {done} times in all"
        )
        assert ends.stack.domain.wait_connected(DISK).pages == then
    assert ends.errors() == []


@SMALL
def test_a_ring_that_grew_can_be_filled(ends: Ends) -> None:
    ends.load("back", max_ring_pages=1)
    ends.load("front", max_ring_pages=16)
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == 1
    with moved(ends):
        save(ends)
        set_limit(ends, 16)
        restore(ends)
        reconnected(ends)
        blocks(ends)
        with held(ends):
            write_held(ends, REQUESTS)
        check_written(ends)


def limits(ends: Ends) -> dict[str, str]:
    """What the block layer knows of the disk."""
    names = ("max_segments", "max_hw_sectors_kb", "write_cache")
    script = f"cd /sys/block/{DISK}/queue && cat {' '.join(names)}"
    lines = ends.channel("front").run(script, timeout=20).text.splitlines()
    return dict(zip(names, lines, strict=True))


WITH_ALL = {"max_segments": "32", "max_hw_sectors_kb": "128", "write_cache": "write back"}
LESS = [
    pytest.param(
        "no-indirect", {"max_segments": "11", "max_hw_sectors_kb": "44"}, id="indirect requests"
    ),
    pytest.param("no-cache", {"write_cache": "write through"}, id="cache"),
]


@SMALL
@pytest.mark.parametrize(("less", "known"), LESS)
def test_limits_follow_the_back_end(ends: Ends, less: str, known: dict[str, str]) -> None:
    ends.load("back", max_ring_pages=4)
    ends.load("front", max_ring_pages=16)
    ends.attach()
    ends.stack.domain.wait_connected(DISK)
    assert limits(ends) == WITH_ALL
    written = ends.fill_disk()
    with moved(ends):
        save(ends)
        ends.load("back", back_end(ends.host, less))
        restore(ends)
        reconnected(ends)
        now = limits(ends)
        assert now == WITH_ALL | known, f"the disk keeps limits of the old back end: {now}"
        assert ends.sum_of_disk() == written
        save(ends)
        ends.load("back")
        restore(ends)
        reconnected(ends)
        now = limits(ends)
        assert now == WITH_ALL, f"the disk has not all that the new back end allows: {now}"
        assert ends.sum_of_disk() == written
        assert ends.fill_disk() == ends.sum_of_disk()


@SMALL
def test_persistent_grants_follow_the_back_end(ends: Ends) -> None:
    ends.load("back")
    ends.load("front", max_ring_pages=4)
    ends.attach()
    ends.stack.domain.wait_connected(DISK)

    def kept() -> int:
        """Pages that dom0 keeps mapped when all is quiet, beside the ring.

        After 4 MiB as many as they will ever be; after one it depends on how the requests fell.
        """
        assert ends.fill_disk(4) == ends.sum_of_disk(4)
        return len(ends.stack.host.grants().of(ends.stack.domain.domid).grants)

    many = kept()
    with moved(ends):
        for persistent in (0, 1):
            save(ends)
            ends.load("back", feature_persistent=persistent)
            restore(ends)
            reconnected(ends)
            assert (kept() >= many) == bool(persistent)
        off = "echo 0 > /sys/module/xen_blkfront/parameters/feature_persistent"
        ends.channel("front").run(off, timeout=20)
        save(ends)
        restore(ends)
        reconnected(ends)
        assert kept() < many
        told = ends.said("front", "persistent grants: ")[-1]
        assert "persistent grants: disabled" in told, f"not read again after the move: {told}"


def hardware_queues(ends: Ends) -> int:
    """How many hardware queues the block layer has for the disk."""
    return int(ends.channel("front").run(f"ls /sys/block/{DISK}/mq | wc -l", timeout=20).text)


@WITH_SCHEDULER
@pytest.mark.stack(domu_vcpus=2)
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(2, 1, id="fewer"),
        pytest.param(1, 2, id="more", marks=pytest.mark.long),
    ],
)
def test_queues_follow_the_back_end(ends: Ends, first: int, then: int) -> None:
    ends.load("back", max_queues=first)
    ends.load("front", max_queues=2, max_ring_pages=1)
    ends.attach()
    assert len(ends.stack.domain.wait_connected(DISK).queues) == first
    blocks(ends)
    with moved(ends):
        with contextlib.ExitStack() as hold:
            hold.enter_context(held(ends))
            write_held(ends, None, cpu=1)  # its queue is the one that goes, or comes
            with saving(ends):
                hold.close()
        ends.load("back", max_queues=then)
        restore(ends)
        reconnected(ends)
        check_written(ends)
        assert len(ends.stack.domain.wait_connected(DISK).queues) == then
        until = time.monotonic() + 20
        while (now := hardware_queues(ends)) != then:
            assert time.monotonic() < until, f"the disk has {now} hardware queues for {then} rings"
            time.sleep(0.1)
        assert ends.fill_disk() == ends.sum_of_disk()
