"""Data lands where it was asked, from memory of any alignment, in requests of any length and shape,
and nowhere else; in both directions, judged from the other side."""

from __future__ import annotations

import random

import pytest
from asking import PAGE, SECTOR, Asker, Content, check_good, extents, faults, read, write

from emu.images.cache import Cache
from emu.rig import RigHost, RigLun

AREA = 16 << 20
"""Bytes of the LUN that a test looks at, neighbours of what it writes included."""
GAP = 3 * SECTOR
"""Between what two writes change: neighbours that must stay."""
BEFORE, ONE, MANY = 1, 2, 3
"""Generations: of dom0, of writes one by one, of writes at once."""

LENGTHS = [
    *(512, 1024, 3584, 4096, 4608, 8192),
    # Around what a request may have: 11 segments, 12 (indirect), 32, 256.
    *(11 * PAGE, 11 * PAGE + 512, 12 * PAGE, 31 * PAGE, 32 * PAGE, 33 * PAGE, 256 * PAGE),
    4 << 20,
]
MEMORY = (0, 512, 2048, 3584)
"""Where in a page the memory of a request begins."""
SCATTERED = [
    [(3584, 512), (0, 512)],
    [(512, 3072), (0, 4096), (1024, 512)],
    [(0, 512), (1024, 512), (2048, 512), (3072, 512)],
    [(2048, 2048), (0, 2048), (1536, 1024), (512, 512), (3584, 512)],
    [(1024, 6144), (2560, 9216), (512, 512)],
    [(512 * (i % 8), 512) for i in range(11)],
    [(512 * (i % 8), 512) for i in range(12)],
    [(512 * (i % 7), 512 * (1 + i % 2)) for i in range(40)],
]
Shape = list[tuple[int, int]]

WAYS = {
    "persistent, 32 segments": ({"feature_persistent": 1}, 32),
    "mapped, 256 segments": ({"feature_persistent": 0, "max_indirect_segments": 256}, 256),
    "mapped, no indirect requests": ({"feature_persistent": 0, "max_indirect_segments": 11}, 11),
}
"""How the front end hands pages over, and the most segments of one request."""


def shapes() -> list[Shape]:
    """The memory of the requests: in one piece, and scattered."""
    whole = [
        [(memory, length)]
        for i, length in enumerate(LENGTHS)
        # Every length from an aligned page and another place, in turn.
        for memory in (0, MEMORY[1 + i % 3])
    ]
    return [*whole, *SCATTERED]


def turned(shape: Shape) -> Shape:
    """As many bytes from other memory."""
    length = sum(bytes for _, bytes in shape)
    first = min(length, PAGE + SECTOR)
    rest = [(SECTOR, length - first)] if length > first else []
    return [(3 * SECTOR, first), *rest]


@pytest.mark.parametrize("way", WAYS)
def test_data_lands_where_it_was_asked(host: RigHost, lun: RigLun, cache: Cache, way: str) -> None:
    """dom0 fills the LUN, the domU writes in every shape, dom0's LUN is looked at; then the domU
    reads what both have written."""
    parameters, segments = WAYS[way]
    content = Content(lun)
    dom0 = Asker(host.dom0, lun.device, cache)
    fill = [write(at, BEFORE, (0, 4 << 20)) for at in range(0, AREA, 4 << 20)]
    check_good(content.done(dom0.ask(*fill)))

    domu = host.create(disk=lun, front_parameters=parameters)
    domu.run("echo none > /sys/block/xvda/queue/scheduler")
    guest = Asker(domu.channel, "/dev/xvda", cache)
    wrong: list[str] = []

    # One after the other.
    at, asked, places = GAP, [], []
    for shape in shapes():
        length = sum(bytes for _, bytes in shape)
        asked.append(write(at, ONE, *shape))
        places.append((at, length, shape))
        at += length + GAP
    assert at < AREA, f"the shapes end at {at}, past the {AREA} bytes that are looked at"
    before = {name: domu.statistic(name) for name in ("wr_sect", "rd_sect")}
    mark = lun.mark()
    wrong += faults(content.done(guest.ask(*asked)))
    writes = lun.requests(mark).writes
    reached = extents((each.lba, each.blocks) for each in writes)
    meant = extents((at // SECTOR, length // SECTOR) for at, length, _ in places)
    if reached != meant:
        wrong.append(f"the LUN was written at {reached}, not at {meant}")
    sectors = sum(length for _, length, _ in places) // SECTOR
    if (got := sum(each.blocks for each in writes)) != sectors:
        wrong.append(f"writes of {sectors} sectors reached the LUN as {got}")
    if (got := domu.statistic("wr_sect") - before["wr_sect"]) != sectors:
        wrong.append(f"the back end counts {got} sectors written, not {sectors}")
    wrong += content.differences(0, AREA)

    # What each side wrote, read by the domU into other memory.
    back = [read(at, ONE, *turned(shape)) for at, _, shape in places]
    between = [read(at + length, BEFORE, (512, GAP)) for at, length, _ in places]
    wrong += faults(guest.ask(*back, *between))
    sectors += len(between) * GAP // SECTOR
    if (got := domu.statistic("rd_sect") - before["rd_sect"]) < sectors:
        wrong.append(f"the back end counts {got} sectors read, but {sectors} were")

    # As few requests as the ring's have room for.
    for verb, kind in ((write, "wr_req"), (read, "rd_req")):
        taken = domu.statistic(kind)
        wrong += faults(content.done(guest.ask(verb(0, ONE, (0, 1 << 20)))))
        taken, least = domu.statistic(kind) - taken, -(-(1 << 20) // (segments * PAGE))
        if taken != least:
            wrong.append(f"1 MiB took {taken} requests ({kind}), not {least}")

    # All at once: no answer is another's.
    order = random.Random(23)
    some = [(memory, 512 * (1 + i % 24)) for i, memory in enumerate(MEMORY * 30)]
    slots = order.sample(range(AREA // 32768), len(some))
    many = [write(slot * 32768, MANY, piece) for slot, piece in zip(slots, some, strict=True)]
    wrong += faults(content.done(guest.ask(*many, together=True)))
    wrong += content.differences(0, AREA)
    many = [read(slot * 32768, MANY, piece) for slot, piece in zip(slots, some, strict=True)]
    wrong += faults(guest.ask(*many, together=True))
    assert not wrong, f"{way}:\n" + "\n".join(wrong)
