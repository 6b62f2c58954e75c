"""The series: several queues, each with a ring of its own, up to the largest."""

from __future__ import annotations

import pytest
from ends import DISK, Ends

PAGES = 64
FROM_EACH_CPU = """
set -e
for cpu in 0 1 2 3; do
    taskset -c $cpu dd if=/dev/$1 of=/dev/null bs=64k count=4 skip=$((cpu * 4)) iflag=direct
done
"""


def connect(ends: Ends, queues: int, pages: int, front: str = "patched") -> None:
    order = pages.bit_length() - 1
    ends.load("front", front, max_ring_page_order=order, max_queues=queues)
    ends.attach()


@pytest.mark.stack(kernel="lab", domu_memory=256, domu_vcpus=4)
@pytest.mark.parametrize("queues", [2, pytest.param(4, marks=pytest.mark.long)])
def test_64_pages_in_each(ends: Ends, queues: int) -> None:
    host, domain = ends.stack.host, ends.stack.domain
    ends.load("back", max_queues=4)
    before = host.grants().of(domain.domid)
    connect(ends, queues, PAGES)
    ring = domain.wait_connected(DISK)
    assert [len(queue.refs) for queue in ring.queues] == [PAGES] * queues
    assert len(set(ring.refs)) == queues * PAGES
    assert list(ring.disagreements()) == []
    front = domain.front_tree(DISK)
    names = {f"ring-ref{page}" for page in range(PAGES)} | {"event-channel"}
    for number in range(queues):
        assert set(front.sub(f"queue-{number}").children()) == names
    assert f"queue-{queues}" not in front.children()
    assert not names & set(front.children())

    assert ends.fill_disk() == ends.sum_of_disk()
    ends.channel("front").run(["sh", "-c", FROM_EACH_CPU, "sh", DISK], timeout=60)
    views = domain.queues(DISK)
    assert views.front
    assert views.back
    assert [queue.pages for queue in views.back] == [PAGES] * queues
    assert all(queue.req_prod for queue in views.front), "a queue was never used"
    held = sum(queue.persistent_grants or 0 for queue in views.back)
    mapped = host.grants().of(domain.domid).refs - before.refs
    assert mapped >= set(ring.refs)
    assert len(mapped) == queues * PAGES + held
    domain.detach(DISK)
    assert host.grants().of(domain.domid).refs == before.refs
    assert ends.errors() == []


@pytest.mark.stack(domu_vcpus=2)
@pytest.mark.parametrize("back", ["stock", "patched"])
@pytest.mark.parametrize("front", ["stock", "patched"])
def test_pairing_with_two_queues(ends: Ends, front: str, back: str) -> None:
    ends.load("back", back, max_queues=2)
    connect(ends, 2, 16, front)
    ring = ends.stack.domain.wait_connected(DISK)
    assert [len(queue.refs) for queue in ring.queues] == [16, 16]
    assert list(ring.disagreements()) == []
    keys = ends.stack.domain.front_tree(DISK)
    assert keys.get("ring-page-order") == "4"
    assert keys.get("num-ring-pages") == ("16" if front == "patched" else None)
    assert ends.fill_disk() == ends.sum_of_disk()
    ends.stack.domain.detach(DISK)
    assert ends.errors() == []
