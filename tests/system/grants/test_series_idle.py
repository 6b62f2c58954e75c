"""The series: memory and grants of a disk at rest, after a burst and another, and after idling."""

from __future__ import annotations

import functools
import operator

import pytest

from emu.deadline import Deadline, poll
from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.rig.verifying import Load
from emu.xen.queues import BackQueue, FrontQueue

PAGES = 4
BURST = Load(outstanding=256, size=32768, reads=50)
"""More than the ring holds, of 8 segments each."""
ONE_REQUEST = 33
"""Grants of a request of 32 segments, with that of the page which describes them."""
LEAST = 11
"""Segments of a plain request."""
SQUEEZED_WITHIN = 3.0
"""It keeps none anyway after 5 s without a request."""
PURGED_WITHIN = 10.0
"""Seconds in which a back end has let go of what it may not keep: it looks every 100 ms."""
FRONT_WITHIN = 25.0
"""Seconds in which a front end has taken back what is not mapped: it looks every ten."""


def views(domu: RigDomu) -> tuple[FrontQueue, BackQueue]:
    both = domu.queues()
    assert both.front, "the front end shows no queue"
    assert both.back, "the back end shows no queue"
    return both.front[0], both.back[0]


def burst(domu: RigDomu) -> None:
    with domu.verifying_io(load=BURST) as io:
        io.await_answers(600)


def number(value: int | None) -> int:
    assert value is not None, "a driver of the series shows fewer numbers than it has"
    return value


def kept_mapped(domu: RigDomu) -> int:
    """Grants that the back end keeps mapped between requests."""
    return number(views(domu)[1].persistent_grants)


def test_second_burst_takes_no_more(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """What a burst leaves is bounded, the same at both ends, and the next burst is done with it."""
    domu = host.create(ring_pages=PAGES)
    with ledger.unchanged():
        domu.attach(lun)
        most = int(host.back_parameter("max_persistent_grants"))
        front, back = views(domu)
        assert number(front.grants) <= ONE_REQUEST, (
            f"at rest the front end has {front.grants} grants: one request takes {ONE_REQUEST}"
        )
        after: list[tuple[FrontQueue, BackQueue]] = []
        for count in (1, 2):
            burst(domu)
            front, back = views(domu)
            after.append((front, back))
            kept = number(back.persistent_grants)
            mapped = len(domu.mapped_refs() & frozenset(domu.data_refs()))
            words = f"after burst {count} "
            assert back.requests == 32 * PAGES, f"{words}the back end has {back.requests} requests"
            assert kept <= most, f"{words}{kept} grants stay mapped, {most} may"
            assert front.persistent_grants_free == kept == mapped, (
                f"{words}the front end knows of {front.persistent_grants_free} grants that stay "
                f"mapped, the back end of {kept}, Xen of {mapped}"
            )
            assert back.persistent_grants_in_use == 0, (
                f"{words}{back.persistent_grants_in_use} grants are in use, and no request is"
            )
            assert number(front.grants) <= number(front.grants_max), (
                f"{words}the front end has {front.grants} grants, {front.grants_max} at most"
            )
            assert front.grants == front.grants_free, (
                f"{words}{front.grants_free} of {front.grants} grants are free, and no request is"
            )
            free = number(back.free_pages)
            assert free <= 32 * PAGES * LEAST, f"{words}the back end keeps {free} free pages"
        first, second = (number(front.grants) for front, _ in after)
        assert second <= first * 1.25, (
            f"the front end had {first} grants after a burst, and {second} after another"
        )
        domu.detach()


REQUESTS = 3
KEPT_FOR = 0.6
"""Seconds in which dom0 looks for grants that are too old several times: each 100 ms."""


def test_idle_grants_are_given_back(host: RigHost, lun: RigLun) -> None:
    """Unused for `persistent_grant_unused_seconds` (0: for any time), dom0 unmaps them, then the
    front end ends them; a disk that is woken up works."""
    domu = host.create(disk=lun, ring_pages=PAGES)
    written = domu.fill()
    ring = frozenset(domu.ring().refs)
    before = domu.mapped_refs()
    assert before - ring, "no grant but the ring's is mapped: nothing could be given back"
    # No grants are too old then.
    host.set_back(persistent_grant_unused_seconds=0)
    until = Deadline("dom0 to unmap grants that it may keep", KEPT_FOR)
    kept = poll(domu.mapped_refs, until, until=lambda now: now != before, pause=0.2)
    assert kept == before, (
        f"dom0 unmapped {len(before - kept)} grants, which may be unused for any time"
    )
    host.set_back(persistent_grant_unused_seconds=2)
    until = Deadline("dom0 to unmap idle grants", PURGED_WITHIN)
    data = frozenset(domu.data_refs())
    left = poll(lambda: domu.mapped_refs() & data, until, until=lambda left: not left, pause=0.3)
    assert not left, (
        f"dom0 still maps {len(left)} grants {until.spent:.0f} s after the last request; "
        f"they may be unused for 2 s"
    )
    until = Deadline("the front end to end idle grants", FRONT_WITHIN)
    granted = poll(lambda: domu.data_refs(), until, until=lambda refs: not refs, pause=0.5)
    assert not granted, (
        f"the front end still grants {len(granted)} pages that dom0 has let go of, "
        f"{until.spent:.0f} s later"
    )
    front, back = views(domu)
    shown = (front.persistent_grants_free, back.persistent_grants)
    assert shown == (0, 0), f"the ends show {shown} persistent grants, and there are none"
    assert domu.sum() == written, "a disk that was idle has other data"
    assert domu.fill() == domu.sum(), "a disk that was idle can't be written"


@pytest.mark.parametrize(
    "parameters",
    [{"feature_persistent": 0}, pytest.param({"max_persistent_grants": 0}, marks=pytest.mark.long)],
    ids=["plain", "persistent"],
)
def test_idle_front_end_ends_half_of_its_grants(
    host: RigHost, lun: RigLun, parameters: dict[str, str | int]
) -> None:
    """Those that dom0 does not keep mapped, each time it looks, down to those of one request, and
    likewise with its room for segments."""
    domu = host.create(disk=lun, ring_pages=PAGES, back_parameters=parameters)
    with domu.verifying_io(load=Load(outstanding=REQUESTS, size=131072, reads=50)) as io:
        io.await_answers(100)
    seen = [number(views(domu)[0].grants)]
    segs = number(views(domu)[0].segs)
    assert segs == REQUESTS, f"a burst left room for {segs} requests, not for {REQUESTS}"
    assert seen[0] > 2 * ONE_REQUEST, f"a burst left {seen[0]} grants: too few to see half of them"
    until = Deadline("the front end to end idle grants", 2 * FRONT_WITHIN)

    def look() -> int:
        now = number(views(domu)[0].grants)
        if now != seen[-1]:
            seen.append(now)
        return now

    poll(look, until, until=lambda now: now <= ONE_REQUEST, pause=0.5)
    want = [seen[0]]
    while want[-1] > ONE_REQUEST:
        want.append(max(want[-1] - want[-1] // 2, ONE_REQUEST))
    assert seen == want, (
        f"the grants of an idle front end were {seen}, one after the other, not {want}"
    )
    front, _ = views(domu)
    assert front.grants == front.grants_free, (
        f"{front.grants_free} of {front.grants} grants are free, and no request is"
    )
    assert front.segs == 1, f"an idle front end has room for {front.segs} requests, not for one"
    written = domu.fill()
    assert domu.sum() == written, "a disk that was idle has other data"


def test_limits_hold_at_run_time(host: RigHost, lun: RigLun) -> None:
    """`max_persistent_grants` and `max_buffer_pages` lowered on a running disk, and back."""
    domu = host.create(disk=lun, ring_pages=PAGES)
    burst(domu)
    before = kept_mapped(domu)
    wrong: list[str] = []
    assert before >= 100, f"a burst left {before} grants mapped: too few for dom0 to take some"
    host.set_back(max_persistent_grants=before)
    until = Deadline("dom0 to keep fewer grants", KEPT_FOR)
    now = poll(lambda: kept_mapped(domu), until, until=lambda now: now != before, pause=0.2)
    if now != before:
        wrong.append(f"{now} of {before} grants stay mapped, and so many may")
    for most in (before // 2, 16):
        host.set_back(max_persistent_grants=most)
        written = domu.fill()
        until = Deadline("dom0 to keep fewer grants", PURGED_WITHIN)
        now = poll(
            lambda: kept_mapped(domu), until, until=functools.partial(operator.ge, most), pause=0.3
        )
        if now > most:
            wrong.append(f"{now} grants stay mapped, max_persistent_grants is {most}")
        if domu.sum() != written:
            wrong.append(f"what is read with max_persistent_grants {most} was not written")
        burst(domu)
        if (now := kept_mapped(domu)) > most:
            wrong.append(f"after a burst {now} stay mapped, max_persistent_grants is {most}")
    host.set_back(max_persistent_grants=1056, max_buffer_pages=8)
    domu.fill()
    until = Deadline("dom0 to keep fewer free pages", PURGED_WITHIN)
    free = poll(
        lambda: number(views(domu)[1].free_pages), until, until=lambda free: free <= 8, pause=0.2
    )
    if free > 8:
        wrong.append(f"{free} free pages are kept, max_buffer_pages is 8")
    burst(domu)
    if (now := kept_mapped(domu)) <= 16:
        wrong.append(f"{now} grants stay mapped after the limit was raised again")
    assert not wrong, f"limits that were changed at run time: {wrong}"


def test_back_end_squeezes_its_pages_when_memory_is_short(host: RigHost, lun: RigLun) -> None:
    """What dom0's kernel reclaims takes the free pages at once, and for a while
    (`buffer_squeeze_duration_ms`), though the ring is not idle."""
    domu = host.create(disk=lun, ring_pages=PAGES, back_parameters={"feature_persistent": 0})
    host.set_back(buffer_squeeze_duration_ms=60_000)
    domu.fill()
    free = number(views(domu)[1].free_pages)
    assert free > 0, "the back end keeps no free page: nothing could be taken"
    host.dom0.run("echo 2 > /proc/sys/vm/drop_caches", timeout=20)
    domu.run("dd if=/dev/xvda of=/dev/null bs=4k count=8 iflag=direct 2> /dev/null")
    # The pages of the last request are free after its answer: until the next look.
    until = Deadline("dom0 to have the last pages", SQUEEZED_WITHIN)
    now = poll(
        lambda: number(views(domu)[1].free_pages), until, until=lambda now: now == 0, pause=0.2
    )
    assert now == 0, (
        f"of {free} free pages {now} are kept when dom0 needs memory, "
        f"{until.spent:.0f} s after the last request"
    )
    written = domu.fill()
    assert domu.sum() == written, "a back end without free pages has damaged data"
