"""The series: saved and restored under a host that allows another ring, while it is read."""

from __future__ import annotations

import pytest
from ends import CONNECTED, DISK, Ends

SAVED = "/run/u1.save"
READERS = """
for n in 1 2 3 4; do
    setsid sh -c 'while :; do
        dd if=/dev/'$1' of=/dev/null bs=64k count=8 iflag=direct || echo failed > /tmp/bad
        echo . >> /tmp/rounds
    done' > /dev/null 2>&1 &
done
"""
ANOTHER_ROUND = "rm -f /tmp/rounds; until [ -s /tmp/rounds ]; do usleep 100000; done"


def save_and_restore(ends: Ends) -> None:
    """Save the domU into dom0's memory and restore it: another domid, another directory."""
    stack = ends.stack
    name = stack.domain.name
    stack.domain.close()
    stack.host.xl("save", name, SAVED, timeout=120)
    stack.host.xl("restore", SAVED, timeout=120)
    domid = stack.host.domain_info(name).domid
    tty = stack.host.read(f"/local/domain/{domid}/console/tty")
    assert tty
    stack.domain = stack.host.adopt(name, domid, tty)
    stack.domain.open_channel(60)


@pytest.mark.stack(kernel="lab", domu_memory=128)
@pytest.mark.parametrize(("first", "then"), [(64, 2), (1, 16)])
def test_ring_changes_over_a_restore(ends: Ends, first: int, then: int) -> None:
    ends.load("back", max_ring_pages=first)
    ends.load("front", max_ring_pages=64)
    ends.attach()
    assert ends.stack.domain.wait_connected(DISK).pages == first
    written = ends.fill_disk()
    ends.channel("front").run(["sh", "-c", READERS, "sh", DISK], timeout=20)
    ends.channel("front").run(ANOTHER_ROUND, timeout=60)
    limit = "/sys/module/xen_blkback/parameters/max_ring_pages"
    ends.channel("back").run(f"echo {then} > {limit}", timeout=20)
    # The guest's console driver prints a WARNING of its own for its second console.
    with ends.stack.machine.watch.allow("kernel WARNING", guest=ends.stack.domain.name):
        save_and_restore(ends)
        ends.wait_back(CONNECTED)
        domu = ends.channel("front")
        domu.run(ANOTHER_ROUND, timeout=60)
        domu.run(["test", "!", "-e", "/tmp/bad"], timeout=20)
        assert ends.stack.domain.wait_connected(DISK).pages == then
        assert ends.sum_of_disk() == written
    assert ends.errors() == []
