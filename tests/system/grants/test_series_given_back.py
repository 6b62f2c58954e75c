"""The series: a disk that is gone has left nothing with either end, and a refused one neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from emu.deadline import Deadline, poll
from emu.images.modules import ENDS
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.disks import STATE_WITHIN
from emu.rig.keys import FrontEndKeys

SLAB = "xen_blkif_req"
"""The back end's requests, of all rings. (Its interfaces share a slab with others.)"""
NO_GRANT = {"event-channel": 1, "ring-ref": 4000000000}


def threads(domu: RigDomu) -> list[str]:
    """The back end's threads for disks of the domU: `<domid>.<device>-<queue>`."""
    names = domu.host.dom0.run("cat /proc/[0-9]*/comm 2>/dev/null", timeout=20, check=False)
    own = f"{domu.domain.domid}."
    return [name for name in names.text.split() if name.startswith(own)]


def interrupts(domu: RigDomu) -> list[str]:
    """The event channels that either end's driver has bound, by their handlers' names."""
    found = []
    for end in ENDS:
        lines = domu.channel_of(end).run("cat /proc/interrupts", timeout=20).text.splitlines()
        found += [line.split()[-1] for line in lines if "blkif" in line]
    return found


def requests(domu: RigDomu) -> int:
    """The back end's requests that are allocated, of all rings."""
    # What a processor keeps to itself counts as used until it is made to give it back.
    script = f"echo 1 > /sys/kernel/slab/{SLAB}/shrink && grep '^{SLAB} ' /proc/slabinfo"
    return int(domu.host.dom0.run(script, timeout=20).text.split()[1])


WITNESSES: dict[str, tuple[Callable[[RigDomu], Any], str]] = {
    "grants": (RigDomu.mapped_refs, "dom0 still maps grants of a disk that is gone"),
    "threads": (threads, "dom0 still runs threads of a disk that is gone"),
    "event channels": (interrupts, "event channels of a disk that is gone are still bound"),
    "memory": (requests, "dom0 still keeps requests of a disk that is gone"),
}


@pytest.mark.stack(domu_vcpus=2)
@pytest.mark.parametrize("what", WITNESSES)
def test_disk_leaves_nothing(host: RigHost, lun: RigLun, what: str) -> None:
    look, words = WITNESSES[what]
    two = {"max_queues": 2}
    domu = host.create(ring_pages=4, front_parameters=two, back_parameters=two)
    before = look(domu)
    domu.attach(lun)
    domu.fill(lun)
    assert look(domu) != before, f"a connected disk shows no {what}: a leak would not show either"
    domu.detach(lun)
    until = Deadline("the last steps of both ends", STATE_WITHIN)  # detach does not wait for them
    left = poll(lambda: look(domu), until, until=lambda now: now == before, pause=0.2)
    more = sorted(left - before) if isinstance(before, frozenset) else left
    assert left == before, f"{words}: {more}"


def test_refused_front_end_leaves_nothing(host: RigHost, lun: RigLun) -> None:
    domu = host.create(front=None)
    domu.offer(lun)
    front = FrontEndKeys(domu)
    front.publish(NO_GRANT)
    front.refusal()
    left = requests(domu)
    assert not left, f"the back end keeps {left} requests of a connection that failed"


def test_ring_pages_are_mapped_once(host: RigHost, lun: RigLun) -> None:
    # Without persistent grants dom0 maps data only while it is moved.
    domu = host.create(ring_pages=8, back_parameters={"feature_persistent": 0})
    before = domu.mapped_refs()
    ring = domu.attach(lun)
    table = host.xen.grants().of(domu.domain.domid)
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
READ_WITHIN = 20.0
"""Seconds for one read to be answered; a hundred take as long as the machine needs."""


def test_every_answer_is_delivered(host: RigHost, lun: RigLun) -> None:
    """One read after the other: no other answer wakes the reader."""
    domu = host.create(disk=lun, ring_pages=1)
    with domu.channel.spawn(["sh", "-c", IN_TURN, "sh", domu.disk(lun), str(READS)]) as reader:
        answered = 0
        until = Deadline("one answer", READ_WITHIN)
        while answered < READS:
            ended = reader.ended  # before the last number is read
            output = domu.channel.run("cat /tmp/answered", timeout=20, check=False).text
            if (now := int(output or 0)) > answered:
                answered, until = now, Deadline("one answer", READ_WITHIN)
            lost = f"read {answered + 1} of {READS} was answered and not delivered, or not answered"
            assert not until.passed, f"{lost}: {domu.queues(lun)}"
            assert ended is None or answered == READS, f"the reader ended: {ended}"
            time.sleep(0.1)
