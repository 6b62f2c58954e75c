"""The series: several queues, each with a ring of its own, up to the largest."""

from __future__ import annotations

import pytest
from driver_checks import check_data, check_quiet, check_unmapped

from emu.rig import RigHost, RigLun
from emu.xen.ring import Ring

PAGES = 64
FROM_EACH_CPU = """
set -e
for cpu in 0 1 2 3; do
    taskset -c $cpu dd if=/dev/$1 of=/dev/null bs=64k count=4 skip=$((cpu * 4)) iflag=direct
done
"""


def check_rings(ring: Ring, pages: list[int]) -> None:
    """Each queue has a ring of its own of so many pages, and both ends know that."""
    found = [len(queue.refs) for queue in ring.queues]
    assert found == pages, f"the queues' rings have {found} pages, not {pages}"
    assert len(set(ring.refs)) == sum(pages), "two queues share a page of their rings"
    wrong = list(ring.disagreements())
    assert not wrong, f"an end shows another ring than the keys: {wrong}"


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
    check_rings(ring, [PAGES] * queues)
    front = domu.domain.front_tree()
    names = {f"ring-ref{page}" for page in range(PAGES)} | {"event-channel"}
    for number in range(queues):
        published = set(front.sub(f"queue-{number}").children())
        assert published == names, (
            f"the front end published {sorted(published ^ names)} too many or too few of queue "
            f"{number}"
        )
    assert f"queue-{queues}" not in front.children(), "the front end published one queue more"
    above = sorted(names & set(front.children()))
    assert not above, f"keys of a queue lie outside its directory: {above}"

    check_data(domu, lun)
    domu.channel.run(["sh", "-c", FROM_EACH_CPU, "sh", domu.disk(lun)], timeout=60)
    views = domu.queues(lun)
    assert views.front, "the front end shows no queue"
    assert views.back, "the back end shows no queue"
    pages = [queue.pages for queue in views.back]
    assert pages == [PAGES] * queues, f"the back end shows rings of {pages} pages"
    assert all(queue.req_prod for queue in views.front), "a queue was never used"
    held = sum(queue.persistent_grants or 0 for queue in views.back)
    mapped = domu.mapped_refs() - before
    unmapped = sorted(set(ring.refs) - mapped)
    assert not unmapped, f"dom0 does not map references {unmapped} of the rings"
    assert len(mapped) == queues * PAGES + held, (
        f"dom0 maps {len(mapped)} references of the domU for {queues * PAGES} pages of rings and "
        f"{held} persistent grants"
    )
    domu.detach(lun)
    check_unmapped(domu, before)
    check_quiet(domu)


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
    check_rings(ring, [16, 16])
    keys = domu.domain.front_tree()
    published = (keys.get("ring-page-order"), keys.get("num-ring-pages"))
    assert published == ("4", "16" if front == "patched" else None), (
        f"the {front} front end published order and pages {published} of its rings of 16 pages"
    )
    check_data(domu, lun)
    domu.detach(lun)
    check_quiet(domu)
