"""Sectors, capacity and its changes: requests count in 512 bytes on every disk, as keys do."""

from __future__ import annotations

import errno

import pytest
from asking import PAGE, SECTOR, Asker, Content, check_good, faults, read, write

from emu.deadline import Deadline, poll
from emu.images.cache import Cache
from emu.rig import RigDomu, RigHost

MIB = 1 << 20
TIB = 1 << 40
AREA = 256 * 1024
RESIZED_WITHIN = 20.0
"""Seconds in which both ends have followed a change of the LUN's size."""

KINDS = {"512/512": (512, 512), "512/4096": (512, 4096), "4096/4096": (4096, 4096)}


def in_domu(domu: RigDomu, disk: str) -> dict[str, int]:
    """What the domU's block layer says of a disk, in bytes."""
    script = "cd /sys/block/$0; cat size queue/logical_block_size queue/physical_block_size"
    words = domu.channel.run(["sh", "-c", script, disk], timeout=20).text.split()
    names = ("capacity", "logical", "physical")
    found = dict(zip(names, map(int, words), strict=True))
    return {**found, "capacity": found["capacity"] * SECTOR}


def test_sectors_of_every_size(host: RigHost, cache: Cache) -> None:
    """512 bytes, 512 in physical ones of 4096, and 4096: keys, units, places, partial sectors."""
    luns = {
        name: host.create_lun(size_mib=16, sector=sector, physical=physical)
        for name, (sector, physical) in KINDS.items()
    }
    domu = host.create(disk=list(luns.values()))
    wrong: list[str] = []
    for name, (sector, physical) in KINDS.items():
        lun = luns[name]
        disk, size = domu.disk(lun), lun.lun.size
        keys = domu.domain.back_tree(disk)
        for key, meant in (
            ("sectors", size // SECTOR),
            ("sector-size", sector),
            ("physical-sector-size", physical),
        ):
            if (found := keys.integer(key)) != meant:
                wrong.append(f"{name}: the back end's key {key} is {found}, not {meant}")
        meant_there = {"capacity": size, "logical": sector, "physical": physical}
        if (there := in_domu(domu, disk)) != meant_there:
            wrong.append(f"{name}: the domU's disk has {there}, not {meant_there}")

        asker, content = Asker(domu.channel, f"/dev/{disk}", cache), Content(lun)
        places = (0, 3 * PAGE, 7 * PAGE + (sector if sector < PAGE else PAGE), size - PAGE)
        mark = lun.mark()
        wrong += faults(content.done(asker.ask(*(write(at, 2, (0, PAGE)) for at in places))))
        if sector == SECTOR:
            some = [(size - SECTOR, SECTOR), (5 * SECTOR, 3 * SECTOR)]
            ask = [write(at, 3, (0, length)) for at, length in some]
            wrong += faults(content.done(asker.ask(*ask)))
        else:
            mark_of_partial = lun.mark()
            partial = [
                write(SECTOR, 4, (0, PAGE)),
                write(0, 4, (0, SECTOR)),
                read(SECTOR, 0, (0, PAGE)),
            ]
            results = {each.asked[:16]: each.result for each in asker.ask(*partial)}
            if set(results.values()) != {-errno.EINVAL}:
                wrong.append(f"{name}: parts of sectors were not refused: {results}")
            if len(lun.requests(mark_of_partial)):
                wrong.append(f"{name}: a part of a sector reached the LUN")
        reached = {each.lba * sector for each in lun.requests(mark).writes}
        if not set(places) <= reached:
            wrong.append(f"{name}: writes to {places} reached the LUN at {sorted(reached)}")
        for at in (0, size - AREA):
            wrong += [f"{name}: {line}" for line in content.differences(at, AREA)]
        beyond = asker.ask(write(size, 5, (0, PAGE)), read(size, 0, (0, PAGE)))
        if [each.result for each in beyond] != [-errno.ENOSPC, 0]:
            wrong.append(f"{name}: beyond the end: {[each.result for each in beyond]}")
        wrong += [f"{name}: {fault}" for fault in faults(asker.ask(read(3 * PAGE, 2, (0, PAGE))))]
    assert not wrong, "\n".join(wrong)


def test_memory_of_any_alignment_on_sectors_of_4096(host: RigHost, cache: Cache) -> None:
    """Memory that begins or ends inside a page: either it is carried, or the domU's block layer
    refuses it before a request is made. Stock front ends (6.1 and newer) ask for what every back
    end refuses."""
    lun = host.create_lun(sector=4096)
    domu = host.create(disk=lun)
    asker, content = Asker(domu.channel, "/dev/xvda", cache), Content(lun)
    wrong: list[str] = []
    for shape in ([(512, PAGE)], [(512, 4 * PAGE)], [(3584, 512), (0, 3584)], [(2048, 40 * PAGE)]):
        for verb in (write, read):
            (answer,) = content.done(asker.ask(verb(0, 2, *shape)))
            if answer.result not in (answer.bytes, -errno.EINVAL) or answer.wrong:
                wrong.append(f"{answer.short}: {answer.result} {answer.wrong}")
    wrong += content.differences(0, AREA)
    assert not wrong, "\n".join(wrong)


def test_disk_beyond_2_tib(host: RigHost, cache: Cache) -> None:
    """More sectors than 32 bits count: what goes to the end does not come to the beginning."""
    wrong: list[str] = []
    luns = [
        host.create_lun(size_mib=(2 * TIB + 64 * MIB) // MIB, name="large"),
        host.create_lun(size_mib=8 * TIB // MIB, sector=4096, name="larger"),
    ]
    domu = host.create(disk=luns)
    for lun in luns:
        name, size = lun.name, lun.lun.size
        disk = domu.disk(lun)
        if (key := domu.domain.back_tree(disk).integer("sectors")) != size // SECTOR:
            wrong.append(f"{name}: the back end's key sectors is {key}, not {size // SECTOR}")
        if (there := in_domu(domu, disk)["capacity"]) != size:
            wrong.append(f"{name}: the domU's disk has {there} bytes, not {size}")
        asker, content = Asker(domu.channel, f"/dev/{disk}", cache), Content(lun)
        # To the beginning, around 2^32 sectors, and to the end.
        places = (0, 2 * TIB - 2 * PAGE, 2 * TIB - PAGE, 2 * TIB, 2 * TIB + PAGE, size - PAGE)
        for generation, at in enumerate(places, 2):
            wrong += faults(content.done(asker.ask(write(at, generation, (0, PAGE)))))
        straddling = write(2 * TIB - PAGE, 20, (0, 2 * PAGE))
        wrong += faults(content.done(asker.ask(straddling)))
        for at in (0, 2 * TIB - AREA, 2 * TIB, size - AREA):
            wrong += content.differences(at, AREA)
        back = [(0, 2), (2 * TIB - PAGE, 20), (2 * TIB, 20), (size - PAGE, 1 + len(places))]
        wrong += faults(asker.ask(*(read(at, what, (0, PAGE)) for at, what in back)))
    assert not wrong, "\n".join(wrong)


def test_discard_on_2_tib(host: RigHost, cache: Cache) -> None:
    """The limit of a discard counts in 32 bits: a disk of whole 2 TiB takes discards like another.
    Stock front ends of 6.1 take none (fixed in 6.9)."""
    lun = host.create_lun(size_mib=2 * TIB // MIB)
    domu = host.create(disk=lun)
    asker = Asker(domu.channel, "/dev/xvda", cache)
    mark = lun.mark()
    wrong: list[str] = []
    for at in (0, 2 * TIB - MIB):
        if result := asker.result(f"discard {at} {MIB}"):
            wrong.append(f"a disk of 2 TiB answers a discard of 1 MiB at {at} with {result}")
    reached = sum(each.blocks for each in lun.requests(mark).writes) * SECTOR
    if reached != 2 * MIB:
        wrong.append(f"of 2 MiB to be discarded {reached} bytes reached the LUN")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("sector", [512, pytest.param(4096, marks=pytest.mark.long)])
def test_disk_follows_the_size_of_its_lun(host: RigHost, cache: Cache, sector: int) -> None:
    """It grows, grows again and shrinks while it is connected, and says so in a line."""
    lun = host.create_lun(size_mib=16, sector=sector)
    domu = host.create(disk=lun)
    asker, content = Asker(domu.channel, "/dev/xvda", cache), Content(lun)
    wrong: list[str] = []
    check_good(content.done(asker.ask(write(0, 2, (0, PAGE)), write(8 * MIB, 2, (0, PAGE)))))
    before = 16
    for mib in (24, 40, 9):
        domu.log.mark()
        lun.resize(mib)
        deadline = Deadline("the domU's disk to follow", RESIZED_WITHIN)
        there = poll(
            lambda: in_domu(domu, "xvda")["capacity"],
            deadline,
            until=lambda size, mib=mib: size == mib * MIB,  # type: ignore[misc]
        )
        key = domu.domain.back_tree().integer("sectors")
        if key != mib * MIB // SECTOR:
            wrong.append(f"of {mib} MiB: the back end's key sectors is {key}")
        if there != mib * MIB:
            wrong.append(f"the LUN has {mib} MiB, the domU's disk {there} bytes")
            break
        change = f"xvda: detected capacity change from {before << 11} to {mib << 11}"
        if not domu.log.lines(change):
            wrong.append(f"of {mib} MiB: no line says {change!r}")
        before = mib
        last = write(mib * MIB - PAGE, mib, (0, PAGE))
        wrong += [f"of {mib} MiB: {fault}" for fault in faults(content.done(asker.ask(last)))]
        beyond = asker.result(write(mib * MIB, 99, (0, PAGE)))
        if beyond != -errno.ENOSPC:
            wrong.append(f"of {mib} MiB: a write beyond the end is answered with {beyond}")
        for at in (0, 8 * MIB, mib * MIB - AREA):
            wrong += [f"of {mib} MiB: {line}" for line in content.differences(at, AREA)]
    assert not wrong, "\n".join(wrong)
    domu.wait_front("Connected")
    domu.wait_back("Connected")
