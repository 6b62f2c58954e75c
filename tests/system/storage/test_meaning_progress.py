"""A disk goes on beside another that is stuck, and a full ring goes on with each answer."""

from __future__ import annotations

from asking import PAGE, SECTOR, Asker, Content, faults, read, write

from emu.deadline import Deadline, poll
from emu.images.cache import Cache
from emu.rig import RigHost, RigLun

RING = 32
"""Requests of a ring of one page."""
WAITING = 24
"""Requests for which the ring has no room."""
SOON = 10.0
"""Seconds in which a request that may go on has reached the LUN."""


def test_disk_goes_on_beside_a_stuck_one(host: RigHost, lun: RigLun, cache: Cache) -> None:
    """One LUN answers nothing, and more is asked of its disk than the ring takes. Each answer then
    makes room for one request. (The front end has more requests than the ring: it might have been
    larger. A stock one has as many, and the block layer wakes who waits for one in batches.)"""
    other = host.create_lun()
    domu = host.create(disk=[lun, other], ring_pages=4, max_ring_pages=1)
    for disk in domu.disks:
        domu.run(f"echo none > /sys/block/{disk}/queue/scheduler")
    stuck, free = (Asker(domu.channel, f"/dev/{disk}", cache) for disk in domu.disks)
    contents = Content(lun), Content(other)
    wrong: list[str] = []
    asked = [write(i * 4 * PAGE, 2, (0, PAGE)) for i in range(RING + WAITING)]
    with lun.held():
        begun = stuck.begin(*asked, together=True)
        lun.await_outstanding(RING)
        places = range(0, 64 * 4 * PAGE, 4 * PAGE)
        wrong += faults(contents[1].done(free.ask(*(write(at, 3, (0, PAGE)) for at in places))))
        wrong += faults(free.ask(*(read(at, 3, (0, PAGE)) for at in places), together=True))
        if (result := free.result("fsync")) != 0:
            wrong.append(f"beside a stuck disk an fsync is answered with {result}")
        if begun.ended() or len(lun.outstanding()) != RING:
            wrong.append(f"of the stuck disk {len(lun.outstanding())} requests are out, not {RING}")

        for number in (1, 2, 5):
            mark = lun.mark()
            lun.release(number)

            def served(mark: int = mark) -> tuple[int, int]:
                return len(lun.requests(mark)), len(lun.outstanding())

            until = Deadline("requests to take the place of answered ones", SOON)
            meant = (number, RING)
            got = poll(served, until, until=lambda now, meant=meant: now == meant)  # type: ignore[misc]
            if got != meant:
                wrong.append(f"{number} answers: {got[0]} requests done, {got[1]} out, not {meant}")
    assert not wrong, "\n".join(wrong)
    wrong += faults(contents[0].done(begun.answers()))
    for content in contents:
        wrong += content.differences(0, 64 * 4 * PAGE)
    assert not wrong, "\n".join(wrong)
    assert all(each.blocks == PAGE // SECTOR for each in lun.requests().writes), "requests merged"
