"""A discard takes what it names, to the sector, and reads as zeros; where none is offered none is
sent, and a secure one is never a plain one."""

from __future__ import annotations

import errno

import pytest
from asking import PAGE, Asker, Content, check_good, extents, faults, read, write
from back_ends import back_end
from driver_checks import refusals

from emu.images.cache import Cache
from emu.rig import RigDomu, RigHost, RigLun

AREA = 4 << 20
RANGES = [
    # Within the LUN's granularity (64 KiB), at its edges, across several.
    (512, 512),
    (4096 + 512, 3 * 512),
    (16384, 4096),
    (65536, 65536),
    (2 * 65536 + 1024, 512),
    (4 * 65536 - 512, 1024),
    (6 * 65536 + 512, 5 * 65536 + 1024),
    (14 * 65536 + 8192, 3 * 65536 + 4096),
    (2 << 20, 1 << 20),
    (AREA - 512, 512),
]
"""Offset and bytes."""


def changes(lun: RigLun, mark: int) -> dict[str, list[tuple[int, int]]]:
    """Where the LUN was changed since `mark`, by operation: offsets and bytes."""
    done: dict[str, list[tuple[int, int]]] = {}
    for each in lun.requests(mark).writes:
        sector = lun.lun.sector
        done.setdefault(each.operation, []).append((each.lba * sector, each.blocks * sector))
    return {operation: extents(ranges) for operation, ranges in done.items()}


def filled(domu: RigDomu, lun: RigLun, cache: Cache) -> tuple[Asker, Content]:
    """The LUN's first bytes written by the domU."""
    asker = Asker(domu.channel, f"/dev/{domu.disk(lun)}", cache)
    content = Content(lun)
    check_good(content.done(asker.ask(write(0, 1, (0, AREA)))))
    return asker, content


@pytest.mark.parametrize("sector", [512, 4096])
def test_discard_takes_what_it_names(host: RigHost, lun: RigLun, cache: Cache, sector: int) -> None:
    """The zeros of a write (BLKZEROOUT) are written, as blkif has no such request."""
    disk = lun if sector == 512 else host.create_lun(sector=sector)
    domu = host.create(disk=disk)
    asker, content = filled(domu, disk, cache)
    wrong: list[str] = []
    ranges = [(at, length) for at, length in RANGES if not (at | length) % sector]
    for verb, operation in (("discard", "unmap"), ("zero", "write")):
        mark, counted = disk.mark(), domu.statistic("ds_req")
        for at, length in ranges:
            result = asker.result(f"{verb} {at} {length}")
            content.put(at, length, 0)
            if result:
                wrong.append(f"{verb} of {length} bytes at {at}: {result}")
        done = changes(disk, mark)
        if done != {operation: extents(ranges)}:
            wrong.append(f"for {verb} of {extents(ranges)} the LUN did {done}")
        wrong += content.differences(0, AREA)
        wrong += faults(asker.ask(*(read(at, 0, (0, length)) for at, length in ranges)))
        counted = domu.statistic("ds_req") - counted
        if counted != (len(ranges) if verb == "discard" else 0):
            wrong.append(f"the back end counts {counted} discards for {len(ranges)} of {verb}")
        check_good(content.done(asker.ask(write(0, 1, (0, AREA)))))
    assert not wrong, "\n".join(wrong)


def test_discard_limits_are_those_of_the_lun(host: RigHost, lun: RigLun) -> None:
    """What dom0's disk says is in the keys, and what the keys say is in the domU."""
    four = host.create_lun(sector=4096)
    domu = host.create(disk=[lun, four])
    wrong: list[str] = []
    for disk in (lun, four):
        root = f"/sys/block/{disk.block}"
        script = f"cat {root}/queue/discard_granularity {root}/discard_alignment"
        granularity, alignment = host.dom0.run(script, timeout=20).text.split()
        keys = domu.domain.back_tree(domu.disk(disk))
        name = domu.disk(disk)
        for key, meant in (
            ("feature-discard", "1"),
            ("discard-granularity", granularity),
            ("discard-alignment", alignment),
            ("discard-secure", "0"),
        ):
            found = keys.integer(key)
            if str(found) != meant:
                wrong.append(
                    f"{name}: the back end's key {key} is {found}, dom0's disk has {meant}"
                )
        files = "cd /sys/block/$0; cat queue/discard_granularity discard_alignment"
        words = ["sh", "-c", files, name]
        limits = domu.channel.run(words, timeout=20).text.split()
        if limits != [granularity, alignment]:
            wrong.append(f"{name}: the domU's disk has {limits}, not {[granularity, alignment]}")
        if domu.queue_limits("discard_max_bytes", disk=disk) == {"discard_max_bytes": "0"}:
            wrong.append(f"{name}: the domU's disk takes no discard")
    assert not wrong, "\n".join(wrong)


def test_discard_is_not_sent_where_none_is_offered(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """discard-enable = 0, as "no-discard" in a disk's specification has it."""
    domu = host.create(disk=lun, front=None)
    host.xen.write({f"{domu.domain.back_path()}/discard-enable": "0"})
    domu.load_front()
    domu.wait_connected()
    asker, content = filled(domu, lun, cache)
    mark = lun.mark()
    results = {verb: asker.result(f"{verb} 0 65536") for verb in ("discard", "secure")}
    assert set(results.values()) == {-errno.EOPNOTSUPP}, f"without discard offered: {results}"
    assert not changes(lun, mark), f"without discard offered the LUN did {changes(lun, mark)}"
    assert domu.statistic("ds_req") == 0, "discards reached a back end that offers none"
    differences = content.differences(0, AREA)
    assert not differences, "the LUN changed without a discard:\n" + "\n".join(differences)


def test_discard_that_is_possible_no_more_is_asked_once(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """The back end offered discards and answers BLKIF_RSP_EOPNOTSUPP (as 6.1's does whose disk has
    lost its discards; that of newer kernels answers as if it were done): the domU's disk takes none
    from then on, and everything else."""
    domu = host.create(disk=lun, back=back_end(host, "discard-no-more"))
    asker, content = filled(domu, lun, cache)
    mark = lun.mark()
    domu.log.mark()
    # A discard is a hint: the first is answered by the block layer as if it had been done.
    results = [asker.result("discard 0 65536") for _ in range(3)]
    counted = domu.statistic("ds_req")
    wrong: list[str] = []
    if results[1:] != [-errno.EOPNOTSUPP] * 2:
        wrong.append(f"after a discard that is not possible: {results[1:]}")
    if counted != 1:
        wrong.append(f"the back end was asked for {counted} discards that it can't do, not for 1")
    left = domu.queue_limits("discard_max_bytes")["discard_max_bytes"]
    if left != "0":
        wrong.append(f"the domU's disk still takes discards of {left} bytes")
    if (said := refusals(domu)) != ["discard op failed"]:
        wrong.append(f"not one line that says so: {said}")
    if changed := changes(lun, mark):
        wrong.append(f"the LUN did {changed}")
    wrong += faults(content.done(asker.ask(write(0, 2, (512, PAGE)))))
    wrong += content.differences(0, AREA)
    assert not wrong, "\n".join(wrong)


def test_secure_discard_is_one_and_a_plain_one_is_not(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """No LUN of ours erases securely, and its back end refuses it. Another shows it by zeros."""
    domu = host.create(disk=lun)
    asker, content = filled(domu, lun, cache)
    mark = lun.mark()
    refused = asker.result("secure 0 65536")
    assert refused == -errno.EOPNOTSUPP, f"secure discard, which is not offered: {refused}"
    assert not changes(lun, mark), f"a secure discard that is not offered: {changes(lun, mark)}"
    domu.detach()
    domu.wait_gone()

    host.load_back(back_end(host, "secure-discard"))
    domu.attach(lun)
    wrong: list[str] = []
    for verb, at, meant in (("secure", 65536, "written"), ("discard", 3 * 65536, "unmapped")):
        mark = lun.mark()
        if result := asker.result(f"{verb} {at} {2 * PAGE}"):
            wrong.append(f"{verb}: {result}")
        content.put(at, 2 * PAGE, 0)
        done = changes(lun, mark)
        ways = {"unmap": "unmapped", "write": "written", "write-same": "written"}
        if {ways[operation] for operation in done} != {meant}:
            wrong.append(f"{verb} of {2 * PAGE} bytes at {at}, to be {meant}: the LUN did {done}")
        if [one for ranges in done.values() for one in ranges] != [(at, 2 * PAGE)]:
            wrong.append(f"{verb} of {2 * PAGE} bytes at {at}: the LUN did {done}")
    wrong += content.differences(0, AREA)
    assert not wrong, "\n".join(wrong)
