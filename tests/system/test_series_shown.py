"""The series: both drivers show their queues, and the two accounts agree."""

from __future__ import annotations

import pytest
from ends import DISK, Ends

from emu.images.modules import End
from emu.xen.domain import virtual_device

ROOT = "/sys/kernel/debug"


def place(ends: Ends, end: End) -> str:
    number = virtual_device(DISK)
    if end == "front":
        return f"{ROOT}/xen-blkfront/vbd-{number}"
    return f"{ROOT}/xen-blkback/vbd-{ends.stack.domain.domid}-{number}"


def shown(ends: Ends, end: End, queue: int = 0) -> dict[str, int]:
    """What an end shows of one queue: name → number."""
    channel = ends.channel(end)
    channel.run(f"grep -q ' {ROOT} ' /proc/mounts || mount -t debugfs none {ROOT}", timeout=20)
    text = channel.run(["cat", f"{place(ends, end)}/queue-{queue}"], timeout=20).text
    return {name: int(number) for name, number in (line.split(": ") for line in text.splitlines())}


@pytest.mark.parametrize("order", [0, 4])
def test_ends_agree(ends: Ends, order: int) -> None:
    ends.load("back")
    ring = ends.connect(order)
    ends.fill_disk()
    front, back = shown(ends, "front"), shown(ends, "back")
    for account in (front, back):
        assert account["pages"] == ring.pages
        assert account["size"] == ring.requests
        assert account["outstanding"] == 0
    assert front["req_prod"] == front["rsp_cons"] == back["req_cons"] == back["rsp_prod"] > 0
    assert back["requests"] == ring.requests
    assert back["persistent_grants"] == front["persistent_grants_free"] > 0
    assert front["persistent_grants_free"] <= front["grants_free"] == front["grants"]


def test_requests_under_way_are_counted(ends: Ends) -> None:
    ends.load("back")
    ends.connect(order=2)
    dom0 = ends.channel("back")
    # The LUN stands still while its queue is frozen: what the domU asks for stays outstanding.
    tcmu = dom0.run("pidof tcmu-runner", timeout=20).text.strip()
    dom0.run(f"kill -STOP {tcmu}", timeout=20)
    reader = ends.channel("front").spawn(
        ["dd", f"if=/dev/{DISK}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]
    )
    try:
        dom0.run("usleep 500000", timeout=20)
        counts = {end: shown(ends, end)["outstanding"] for end in ("front", "back")}
    finally:
        dom0.run(f"kill -CONT {tcmu}", timeout=20)
        reader.close()
    assert counts == {"front": 1, "back": 1}


@pytest.mark.stack(domu_vcpus=2)
def test_each_queue_and_only_while_connected(ends: Ends) -> None:
    ends.load("back", max_queues=2)
    ends.load("front", max_queues=2, max_ring_page_order=1)
    ends.attach()
    assert len(ends.stack.domain.wait_connected(DISK).queues) == 2
    for queue in (0, 1):
        assert shown(ends, "front", queue)["pages"] == shown(ends, "back", queue)["pages"] == 2
    ends.stack.domain.detach(DISK)
    ends.channel("back").run(["test", "!", "-e", place(ends, "back")], timeout=20)
    script = "n=0; while [ -e $1 ]; do usleep 50000; n=$((n+1)); [ $n -lt 99 ] || exit 1; done"
    ends.channel("front").run(["sh", "-c", script, "sh", place(ends, "front")], timeout=20)
