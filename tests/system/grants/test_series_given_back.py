"""The series: a disk that is gone has left nothing with either end, and a refused one neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from ends import DISK, SETTLES_WITHIN, Ends

SLAB = "xen_blkif_req"
"""The back end's requests, of all rings. (Its interfaces share a slab with others.)"""
NO_GRANT = {"event-channel": 1, "ring-ref": 4000000000}


def mapped(ends: Ends) -> frozenset[int]:
    """The domU's references that dom0 has mapped."""
    return frozenset(ends.stack.host.grants().of(ends.stack.domain.domid).refs)


def threads(ends: Ends) -> list[str]:
    """The back end's threads for disks of the domU: `<domid>.<device>-<queue>`."""
    names = ends.channel("back").run("cat /proc/[0-9]*/comm 2>/dev/null", timeout=20, check=False)
    own = f"{ends.stack.domain.domid}."
    return [name for name in names.text.split() if name.startswith(own)]


def interrupts(ends: Ends) -> list[str]:
    """The event channels that either end's driver has bound, by their handlers' names."""
    found = []
    for end in ("back", "front"):
        lines = ends.channel(end).run("cat /proc/interrupts", timeout=20).text.splitlines()
        found += [line.split()[-1] for line in lines if "blkif" in line]
    return found


def requests(ends: Ends) -> int:
    """The back end's requests that are allocated, of all rings."""
    # What a processor keeps to itself counts as used until it is made to give it back.
    script = f"echo 1 > /sys/kernel/slab/{SLAB}/shrink && grep '^{SLAB} ' /proc/slabinfo"
    return int(ends.channel("back").run(script, timeout=20).text.split()[1])


WITNESSES: dict[str, tuple[Callable[[Ends], Any], str]] = {
    "grants": (mapped, "dom0 still maps grants of a disk that is gone"),
    "threads": (threads, "dom0 still runs threads of a disk that is gone"),
    "event channels": (interrupts, "event channels of a disk that is gone are still bound"),
    "memory": (requests, "dom0 still keeps requests of a disk that is gone"),
}


@pytest.mark.stack(domu_vcpus=2)
@pytest.mark.parametrize("what", WITNESSES)
def test_nothing_is_left_of_a_disk(ends: Ends, what: str) -> None:
    look, words = WITNESSES[what]
    ends.load("back", max_queues=2)
    before = look(ends)
    ends.load("front", max_queues=2, max_ring_pages=4)
    ends.attach()
    ends.stack.domain.wait_connected(DISK)
    ends.fill_disk()
    assert look(ends) != before, f"a connected disk shows no {what}: nothing can be told"
    ends.stack.domain.detach(DISK)
    until = time.monotonic() + SETTLES_WITHIN  # neither end waits for the other's last step
    while (left := look(ends)) != before and time.monotonic() < until:
        time.sleep(0.2)
    more = sorted(left - before) if isinstance(before, frozenset) else left
    assert left == before, f"{words}: {more}"


def test_nothing_is_kept_for_a_refused_front_end(ends: Ends) -> None:
    ends.load("back")
    ends.attach()
    ends.publish(NO_GRANT)
    ends.refusal()
    left = requests(ends)
    assert not left, f"the back end keeps {left} requests of a connection that failed"


def test_every_page_of_a_ring_is_mapped_once(ends: Ends) -> None:
    ends.load("back", feature_persistent=0)  # dom0 maps data only while it is moved
    before = mapped(ends)
    ring = ends.connect(order=3)
    table = ends.stack.host.grants().of(ends.stack.domain.domid)
    times = {one.ref: one.mappings for one in table.grants if one.ref not in before}
    wrong = {ref: times.get(ref, 0) for ref in ring.refs if times.get(ref) != 1}
    assert not wrong, f"pages of the ring by reference, and how often dom0 maps each: {wrong}"
    others = sorted(set(times) - set(ring.refs))
    assert not others, f"dom0 maps what the front end has not published as its ring: {others}"


IN_TURN = """
n=0
while [ $n -lt $2 ]; do
    dd if=/dev/$1 of=/dev/null bs=4k count=1 skip=$n iflag=direct 2>/dev/null || exit 1
    n=$((n + 1)); echo $n > /tmp/answered
done
"""
READS = 100
"""More than three times round the smallest ring."""


def test_every_answer_is_told(ends: Ends) -> None:
    """One read after the other: nobody else's answer wakes who waits."""
    ends.load("back")
    ends.connect(order=0)
    domu = ends.channel("front")
    reader = domu.spawn(["sh", "-c", IN_TURN, "sh", DISK, str(READS)])
    until = time.monotonic() + SETTLES_WITHIN
    answered = 0
    while answered < READS:
        output = domu.run("cat /tmp/answered", timeout=20, check=False).text
        if int(output or 0) > answered:
            answered = int(output)
            until = time.monotonic() + SETTLES_WITHIN  # for the next one, not for them all
        lost = f"read {answered + 1} of {READS} was answered and nobody told, or never answered"
        assert time.monotonic() < until, f"{lost}: {ends.stack.domain.queues(DISK)}"
        time.sleep(0.1)
    reader.close()
