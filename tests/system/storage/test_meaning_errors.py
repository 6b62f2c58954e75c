"""An error at the LUN reaches whoever asked, and nobody else: of each operation, in its first and
in a later piece, once and always."""

from __future__ import annotations

import errno

import pytest
from asking import PAGE, SECTOR, Asker, Content, check_good, faults, read, write

from emu.images.cache import Cache
from emu.rig import RigDomu, RigHost, RigLun
from emu.xen.lunserver import Kinds

MIB = 1 << 20
PLACE = 8 * MIB
"""Where the requests are that fail."""
LENGTHS = {"of one page": PAGE, "of 1 MiB": MIB}
"""One request of the ring, and eight; the LUN is asked in pieces of 64 KiB."""
FAILED = -errno.EIO

OPERATIONS: dict[str, Kinds] = {"write": "writes", "read": "reads", "discard": "writes"}


def request(operation: str, length: int) -> str:
    """A request of `length` bytes at the place that fails."""
    if operation == "discard":
        return f"discard {PLACE} {length}"
    return (read if operation == "read" else write)(PLACE, 1, (0, length))


def stat(domu: RigDomu) -> dict[str, int]:
    """Reads and writes that the domU's block layer counts as done (Linux' block/stat.rst)."""
    words = domu.run("cat /sys/block/xvda/stat").split()
    return {"reads": int(words[0]), "writes": int(words[4])}


def fails(
    lun: RigLun, asker: Asker, content: Content, operation: str, at: int, length: int
) -> list[str]:
    """Let a block of a request fail once, then always, then no more; what was wrong."""
    wrong: list[str] = []
    kinds, block, asked = OPERATIONS[operation], (PLACE + at) // SECTOR, request(operation, length)
    # What a read has to bring in the end; what is discarded was there.
    check_good(content.done(asker.ask(request("write", length))))
    good = 0 if operation == "discard" else length
    for name, times, answers in (("once", 1, [FAILED, good]), ("always", 0, [FAILED, FAILED])):
        lun.fail(block, 1, kinds=kinds, times=times)
        got = asker.ask(asked, asked)
        lun.clear()
        if [each.result for each in got] != answers or any(
            each.wrong for each in got if each.result > 0
        ):
            shown = [f"{each.result} {each.wrong}".strip() for each in got]
            wrong.append(f"failed {name}: answered with {shown}, not with {answers}")
    (last,) = asker.ask(asked)
    if last.result != good or last.wrong:
        wrong.append(f"failed no more: {last.result} {last.wrong}")
    if operation == "discard":
        content.put(PLACE, length, 0)
    wrong += content.differences(PLACE - 16 * PAGE, length + 32 * PAGE)
    return wrong


@pytest.mark.parametrize("persistent", [1, pytest.param(0, marks=pytest.mark.long)])
def test_error_reaches_the_caller(
    host: RigHost, lun: RigLun, cache: Cache, persistent: int
) -> None:
    """Through pages that are copied (persistent grants), and through those of the caller."""
    domu = host.create(disk=lun, front_parameters={"feature_persistent": persistent})
    asker, content = Asker(domu.channel, "/dev/xvda", cache), Content(lun)
    wrong: dict[str, list[str]] = {}
    for operation in OPERATIONS:
        for size, length in LENGTHS.items():
            pieces = {"the first block": 0, "the last block": length - SECTOR}
            if length > PAGE:
                pieces["a block in the middle"] = 5 * length // 8 + 7 * SECTOR
            for piece, at in pieces.items():
                if found := fails(lun, asker, content, operation, at, length):
                    wrong[f"{operation} {size}, {piece}"] = found
    # A write of which only a part reached the LUN.
    lun.tear(3, PLACE // SECTOR, 1, answer="error", times=1)
    if (result := asker.result(request("write", PAGE))) != FAILED:
        wrong["write that was torn"] = [f"answered with {result}"]
    assert not wrong, "\n".join(f"{name}: {'; '.join(what)}" for name, what in wrong.items())
    domu.wait_front("Connected")
    domu.wait_back("Connected")


def test_error_hits_only_its_own_request(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """Many at once, of which two fail; and both ends count all of them."""
    domu = host.create(disk=lun)
    domu.run("echo none > /sys/block/xvda/queue/scheduler")
    asker, content = Asker(domu.channel, "/dev/xvda", cache), Content(lun)
    number, bad_read, bad_write = 96, 41, 60
    places = [i * 4 * PAGE for i in range(number)]
    check_good(content.done(asker.ask(*(write(at, 2, (0, PAGE)) for at in places))))
    # Reads and writes take turns: no two of a kind are neighbours.
    asked = [
        read(at, 2, (512, PAGE)) if i % 2 else write(at, 3, (512, PAGE))
        for i, at in enumerate(places)
    ]
    lun.fail(places[bad_read] // SECTOR + 7, 1, kinds="reads")
    lun.fail(places[bad_write] // SECTOR + 7, 1, kinds="writes")
    before = {"rd_req": domu.statistic("rd_req"), "wr_req": domu.statistic("wr_req"), **stat(domu)}
    answers = content.done(asker.ask(*asked, together=True))
    after = {"rd_req": domu.statistic("rd_req"), "wr_req": domu.statistic("wr_req"), **stat(domu)}
    lun.clear()
    failed = [i for i, each in enumerate(answers) if each.result < 0]
    wrong = [f"{each.short}: {each.wrong}" for each in answers if each.wrong]
    if failed != [bad_read, bad_write]:
        wrong.append(f"requests {failed} failed, not {[bad_read, bad_write]}")
    wrong += content.differences(0, places[bad_write])
    wrong += content.differences(places[bad_write] + PAGE, number * 4 * PAGE)
    counted = {name: after[name] - before[name] for name in after}
    if set(counted.values()) != {number // 2}:
        wrong.append(f"of {number // 2} reads and as many writes the ends count {counted}")
    assert not wrong, "\n".join(wrong)


def test_error_through_the_page_cache(host: RigHost, lun: RigLun) -> None:
    """A read that fails leaves nothing to be taken for data; a write that fails shows at fsync."""
    domu = host.create(disk=lun)
    domu.run("yes stale | dd of=/dev/xvda bs=4k count=64 iflag=fullblock oflag=direct 2> /dev/null")
    wrong: list[str] = []
    reads = "dd if=/dev/xvda bs=4k skip=20 count=1 2> /dev/null | sha256sum"
    meant = domu.run(
        "yes stale | dd bs=4k skip=20 count=1 iflag=fullblock 2> /dev/null | sha256sum"
    )
    lun.fail(20 * 8 + 3, 1, kinds="reads")
    status = "dd if=/dev/xvda of=/dev/null bs=4k skip=20 count=1 2> /dev/null; echo $?"
    for again in ("first", "second"):
        if (ended := domu.run(status).strip()) != "1":
            wrong.append(f"the {again} read of a block that can't be read ended with {ended}")
    lun.clear()
    if (found := domu.run(reads)) != meant:
        wrong.append(f"a block that can be read again is {found.strip()}, not {meant.strip()}")
    writes = "dd if=/dev/zero of=/dev/xvda bs=4k seek=40 count=8 conv=fsync 2> /dev/null; echo $?"
    lun.fail(44 * 8, 1, kinds="writes")
    if (ended := domu.run(writes).strip()) != "1":
        wrong.append(f"an fsync of a block that can't be written ended with {ended}")
    lun.clear()
    if (ended := domu.run(writes).strip()) != "0":
        wrong.append(f"an fsync of a block that can be written again ended with {ended}")
    assert not wrong, "\n".join(wrong)


EACH: dict[str, tuple[Kinds, str, tuple[str, ...]]] = {
    "read": ("reads", read(PLACE, 0, (0, PAGE)), ("read",)),
    "write": ("writes", write(PLACE, 0, (0, PAGE)), ("write",)),
    "flush": ("flushes", "fsync", ("flush",)),
    "unmap": ("unmaps", f"discard {PLACE} {MIB}", ("unmap",)),
    # blkif has no request for zeros: a domU writes them. So does tcmu-runner 1.5.2.
    "zeros": ("writes", f"zero {PLACE} {MIB}", ("write-same", "write")),
}
"""What fails, how it is asked for, and what it may be at the LUN."""
DELAY_MS = 20


def test_error_of_each_operation_reaches_who_asked(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """In dom0 and in the domU; of requests that the LUN answers at once, and of those it delays.
    Stock front ends answer an fsync whose flush fails with 0."""
    domu = host.create(disk=lun)
    askers = {
        "dom0": Asker(host.dom0, lun.device, cache),
        "the domU": Asker(domu.channel, "/dev/xvda", cache),
    }
    wrong: list[str] = []
    for who, asker in askers.items():
        for name, (kinds, asked, operations) in EACH.items():
            check_good(asker.ask(write(PLACE, 0, (0, PAGE))))
            for when in ("at once", "late"):
                mark = lun.mark()
                lun.fail(kinds=kinds)
                if when == "late":
                    lun.delay(DELAY_MS, kinds)
                result = asker.result(asked)
                lun.clear()
                failed = [each for each in lun.requests(mark) if each.operation in operations]
                if not failed or any(each.done for each in failed):
                    wrong.append(f"{name}, {who}, {when}: the LUN has failed none: {failed}")
                if result >= 0 or (who == "the domU" and result != FAILED):
                    wrong.append(f"{name} fails {when}, {who} is answered with {result}")
            if (result := asker.result(asked)) < 0:
                wrong.append(f"{name} fails no more, {who} is answered with {result}")
    # A WRITE SAME that unmaps is an unmap to the LUN's server: fallocate() in dom0.
    lun.fail(kinds="unmaps")
    lun.delay(DELAY_MS, "unmaps")
    if (result := askers["dom0"].result(f"punch {PLACE} {MIB}")) >= 0:
        wrong.append(f"a WRITE SAME that unmaps fails, dom0 is answered with {result}")
    assert not wrong, "\n".join(wrong)


def test_zeros_are_written_where_write_same_fails(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """dom0's blkdev_issue_zeroout() of 6.1 writes them, and answers as if nothing had failed; that
    of 6.12 and newer answers with the error."""
    asker, content, length = Asker(host.dom0, lun.device, cache), Content(lun), 64 * 1024
    check_good(content.done(asker.ask(write(PLACE, 1, (0, length)))))
    mark = lun.mark()
    lun.fail(kinds="write-sames")
    result = asker.result(f"zero {PLACE} {length}")
    done = [(each.operation, each.done) for each in lun.requests(mark)]
    if host.xen.xen_release.tcmu_runner != "1.5.2":  # which itself makes writes of it
        assert done[0] == ("write-same", False), f"dom0 asks for zeros with {done}"
    written = done[-1] == ("write", True)
    if written:
        content.put(PLACE, length, 0)
    assert result == 0 if written else result < 0, (
        f"zeros that dom0 asks for with a WRITE SAME that fails: answered with {result}, {done}"
    )
    differences = content.differences(PLACE, length)
    assert not differences, "the LUN holds other data:\n" + "\n".join(differences)
    wrong = faults(asker.ask(read(PLACE, 0 if written else 1, (0, PAGE))))
    assert not wrong, f"after zeros that were to be written: {wrong}"
