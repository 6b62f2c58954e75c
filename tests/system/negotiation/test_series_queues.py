"""The series: several queues, each with a ring of its own, up to the largest."""

from __future__ import annotations

import pytest

from emu.rig import RigHost, RigLun

PAGES = 64
FROM_EACH_CPU = """
set -e
for cpu in 0 1 2 3; do
    taskset -c $cpu dd if=/dev/$1 of=/dev/null bs=64k count=4 skip=$((cpu * 4)) iflag=direct
done
"""


@pytest.mark.stack(kernel="lab", domu_memory=256, domu_vcpus=4)
@pytest.mark.parametrize("queues", [2, pytest.param(4, marks=pytest.mark.long)])
def test_each_queue_has_64_pages(host: RigHost, lun: RigLun, queues: int) -> None:
    domu = host.create(
        ring_pages=PAGES,
        front_parameters={"max_queues": queues},
        back_parameters={"max_queues": 4},
    )
    before = domu.mapped_refs()
    ring = domu.attach(lun)
    assert [len(queue.refs) for queue in ring.queues] == [PAGES] * queues
    assert len(set(ring.refs)) == queues * PAGES
    assert list(ring.disagreements()) == []
    front = domu.domain.front_tree()
    names = {f"ring-ref{page}" for page in range(PAGES)} | {"event-channel"}
    for number in range(queues):
        assert set(front.sub(f"queue-{number}").children()) == names
    assert f"queue-{queues}" not in front.children()
    assert not names & set(front.children())

    assert domu.fill(lun) == domu.sum(lun)
    domu.channel.run(["sh", "-c", FROM_EACH_CPU, "sh", domu.disk(lun)], timeout=60)
    views = domu.queues(lun)
    assert views.front
    assert views.back
    assert [queue.pages for queue in views.back] == [PAGES] * queues
    assert all(queue.req_prod for queue in views.front), "a queue was never used"
    held = sum(queue.persistent_grants or 0 for queue in views.back)
    mapped = domu.mapped_refs() - before
    assert mapped >= set(ring.refs)
    assert len(mapped) == queues * PAGES + held
    domu.detach(lun)
    assert domu.mapped_refs() == before
    assert domu.errors() == []


@pytest.mark.stack(domu_vcpus=2)
@pytest.mark.parametrize("back", ["stock", "patched"])
@pytest.mark.parametrize("front", ["stock", "patched"])
def test_pairing_with_two_queues(host: RigHost, lun: RigLun, front: str, back: str) -> None:
    two = {"max_queues": 2}
    domu = host.create(
        disk=lun,
        front=front,
        back=back,
        ring_pages=16,
        front_parameters=two,
        back_parameters=two,
    )
    ring = domu.ring(lun)
    assert [len(queue.refs) for queue in ring.queues] == [16, 16]
    assert list(ring.disagreements()) == []
    keys = domu.domain.front_tree()
    assert keys.get("ring-page-order") == "4"
    assert keys.get("num-ring-pages") == ("16" if front == "patched" else None)
    assert domu.fill(lun) == domu.sum(lun)
    domu.detach(lun)
    assert domu.errors() == []
