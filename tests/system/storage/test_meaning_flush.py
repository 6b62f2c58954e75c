"""What is to last does: each fsync is one flush at the LUN, after the writes before it; a barrier
waits for what came before; a disk without a cache gets neither."""

from __future__ import annotations

import time

from asking import PAGE, SECTOR, Asker, write
from back_ends import back_end

from emu.images.cache import Cache
from emu.rig import RigDomu, RigHost, RigLun
from emu.xen.requests import Flag, Records, Request

ROUNDS = 12
FAR = 64 << 20
"""Where the tested writes are; the load is below."""
SOON = 1.0
"""Seconds in which a request that does not wait has long reached the LUN (tens of milliseconds)."""

PLACES = [FAR + i * 4 * PAGE for i in range(ROUNDS)]


def disk(host: RigHost, lun: RigLun, cache: Cache, back: str = "patched") -> tuple[RigDomu, Asker]:
    """A domU with the LUN as its disk, and someone who asks for I/O on it."""
    domu = host.create(disk=lun, back=back)
    return domu, Asker(domu.channel, "/dev/xvda", cache)


def story(records: Records | list[Request]) -> list[str]:
    """What the LUN was asked, in the order in which it was done; the load left out."""
    words = {"flush": "flush", "write": "write"}
    return [
        f"{words[each.operation]}{f' {each.lba}' if each.writes else ''}"
        for each in records
        if each.operation == "flush" or (each.writes and each.lba >= FAR // SECTOR)
    ]


def cache_of(domu: RigDomu) -> tuple[str, str]:
    """What the block layer takes the disk's cache for, and whether it writes through it (FUA)."""
    limits = domu.queue_limits("write_cache", "fua")
    return limits["write_cache"], limits["fua"]


def test_each_fsync_is_a_flush_after_the_writes_before_it(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """Two writes and an fsync, and a write with O_DSYNC, again and again, beside a load."""
    domu, asker = disk(host, lun, cache)
    found = cache_of(domu)
    assert found == ("write back", "0"), f"with a flush offered, and no FUA, the cache is {found}"
    asked, meant = [], []
    for at in PLACES:
        asked += [write(at, 2, (0, PAGE)), write(at + PAGE, 2, (512, PAGE)), "fsync"]
        asked.append(write(at + 2 * PAGE, 2, (0, PAGE), dsync=True))
        first = at // SECTOR
        meant += [f"write {first}", f"write {first + 8}", "flush", f"write {first + 16}", "flush"]
    load = [write(i * 16384 % FAR, 9, (0, PAGE)) for i in range(400)]
    mark, flushes = lun.mark(), domu.statistic("f_req")
    with_load = Asker(domu.channel, "/dev/xvda", cache).begin(*load)
    answers = asker.ask(*asked)
    busy = sum(each.writes for each in lun.requests(mark)) - 3 * ROUNDS
    with_load.answers()
    assert busy > ROUNDS, f"only {busy} writes of the load came between: it was no load"
    assert {each.result for each in answers} == {0, PAGE}, f"answers: {answers}"
    told = story(lun.requests(mark))
    assert told.count("flush") == 2 * ROUNDS, (
        f"{told.count('flush')} flushes reached the LUN for {ROUNDS} fsyncs and as many writes "
        "with O_DSYNC"
    )
    assert told == meant, "a flush came before what it was to make last: " + ", ".join(told)
    counted = domu.statistic("f_req") - flushes
    assert counted == 2 * ROUNDS, f"the back end counts {counted} flushes, not {2 * ROUNDS}"


def test_fsync_waits_for_its_flush(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """An fsync isn't answered before its flush is; writes and reads go on meanwhile."""
    _, asker = disk(host, lun, cache)
    with lun.held("flushes"):
        fsync = asker.begin("fsync")
        lun.await_outstanding(1)
        beside = asker.ask(write(FAR, 2, (0, PAGE)), f"read {FAR} 2 0:{PAGE}")
        assert not [each for each in beside if each.fault], f"beside a flush: {beside}"
        assert not fsync.ended(), "an fsync was answered while its flush was held at the LUN"
    (answer,) = fsync.answers()
    assert answer.result == 0, f"fsync: {answer.result}"


def test_disk_without_a_cache_gets_no_flush(host: RigHost, lun: RigLun, cache: Cache) -> None:
    domu, asker = disk(host, lun, cache, back_end(host, "no-cache"))
    found = cache_of(domu)
    assert found == ("write through", "0"), f"with no flush or barrier offered the cache is {found}"
    mark = lun.mark()
    asked = [write(FAR, 2, (0, PAGE)), "fsync", write(FAR + PAGE, 2, (0, PAGE), dsync=True)]
    results = [each.result for each in asker.ask(*asked)]
    assert results == [PAGE, 0, PAGE], f"two writes and an fsync are answered with {results}"
    told = story(lun.requests(mark))
    first = FAR // SECTOR
    assert told == [f"write {first}", f"write {first + 8}"], f"the LUN was asked {told}"
    assert domu.statistic("f_req") == 0, "flushes reached a back end that offers none"


def test_barrier_waits_for_what_came_before(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """The back end offers feature-barrier alone: an fsync is an empty barrier, and a write with
    O_DSYNC one with data. Neither reaches the LUN while an earlier write is held there."""
    domu, asker = disk(host, lun, cache, back_end(host, "barrier-only"))
    wrong: list[str] = []
    if cache_of(domu) != ("write back", "1"):
        wrong.append(f"with barriers alone the disk's cache is {cache_of(domu)}")
    first = FAR // SECTOR
    for what, request, after in (
        ("an fsync", "fsync", ["flush"]),
        (
            "a write with O_DSYNC",
            write(FAR + PAGE, 2, (0, PAGE), dsync=True),
            ["flush", f"write {first + 8}"],
        ),
    ):
        mark = lun.mark()
        with lun.held("writes"):
            before = asker.begin(write(FAR, 2, (0, PAGE)))
            lun.await_outstanding(1)
            barrier = asker.begin(request)
            time.sleep(SOON)
            there = [each.lba for each in lun.outstanding()]
            if there != [first] or story(lun.requests(mark)):
                wrong.append(f"{what} did not wait for the write before it: at the LUN are {there}")
            if barrier.ended():
                wrong.append(f"{what} was answered while the write before it was held")
        if [before.answers()[0].fault, barrier.answers()[0].fault] != ["", ""]:
            wrong.append(f"{what}: {before.answers()} {barrier.answers()}")
        told = story(lun.requests(mark))
        # A barrier with data may be followed by another flush, or be written through.
        if told[: 1 + len(after)] != [f"write {first}", *after]:
            wrong.append(f"{what}: the LUN did {told}")
    if (counted := domu.statistic("f_req")) < 2:
        wrong.append(f"the back end counts {counted} barriers")
    assert not wrong, "\n".join(wrong)


def test_barrier_with_data_lasts(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """A front end takes a barrier for FUA, too: what it writes has to be past the LUN's cache when
    it is answered, by a flush behind it or by FUA. Stock back ends flush before it alone."""
    _, asker = disk(host, lun, cache, back_end(host, "barrier-only"))
    mark = lun.mark()
    answer = asker.result(write(FAR, 2, (0, PAGE), dsync=True))
    assert answer == PAGE, f"a write with O_DSYNC was answered with {answer}"
    done = list(lun.requests(mark))
    (at,) = (i for i, each in enumerate(done) if each.lba == FAR // SECTOR and each.writes)
    lasts = Flag.FUA in done[at].flags or "flush" in story(done[at:])
    assert lasts, f"a write with O_DSYNC was answered and is in the LUN's cache: {story(done)}"
