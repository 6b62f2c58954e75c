"""Many disks with large rings in a small domU: all of them work, if slowly."""

from __future__ import annotations

import contextlib
import re

import pytest
from driver_checks import check_pages

from emu.rig import RigDomu, RigHost
from emu.rig.verifying import Load

RING_PAGES = 64
SIZES = [
    pytest.param(8, id="8", marks=pytest.mark.stack(kernel="lab", domu_memory=64)),
    pytest.param(
        24,
        id="24",
        marks=[pytest.mark.stack(kernel="lab", domu_memory=128), pytest.mark.long],
    ),
]
LOAD = Load(outstanding=16, size=65536)
"""Of one disk: 24 of them have use for 6144 grants, and an eighth of the memory is some 3700."""
ANSWERS = 40
"""Of each disk, while all of them work."""
SHARE = 8
"""The fraction of memory that the grants of all disks may take (GRANTS_MEMORY_SHARE)."""
ONE_REQUEST = 33
"""Grants of a request of 32 segments: those each disk may have in any case."""
MOST_KIB = 2300
"""Memory that a disk at rest may take: its ring, and 2048 entries of the block layer's tags."""
XENSTORE_KEYS = 10000
"""Keys a domain may have: by xenstored's default, 1000, twelve disks with 64 pages each."""
GRANTS = "cat /sys/kernel/debug/xen-blkfront/vbd-*/queue-*"


def memory(domu: RigDomu, name: str) -> int:
    """A number of /proc/meminfo, in KiB."""
    found = re.search(rf"^{name}: *(\d+) kB$", domu.run("cat /proc/meminfo"), re.M)
    assert found, f"the domU's /proc/meminfo has no {name}"
    return int(found[1])


def granted(domu: RigDomu) -> int:
    """Grants of all its disks."""
    return sum(int(number) for number in re.findall(r"^grants: (\d+)$", domu.run(GRANTS), re.M))


@pytest.mark.parametrize("disks", SIZES)
@pytest.mark.timeout(400)
def test_many_large_rings_in_a_small_domu(host: RigHost, disks: int) -> None:
    """With stock drivers, which make every grant of a ring before they connect, the first disk
    does not get there: 264 MiB."""
    host.dom0.run(f"xenstore-control quota set nodes {XENSTORE_KEYS}", timeout=20)
    domu = host.create(ring_pages=RING_PAGES, max_ring_pages=RING_PAGES)
    before = memory(domu, "MemFree")
    luns = [host.create_lun(size_mib=8) for _ in range(disks)]
    for number, lun in enumerate(luns, start=1):
        check_pages(domu.attach(lun), RING_PAGES)
        each = (before - memory(domu, "MemFree")) / number
        assert each <= MOST_KIB, f"a disk at rest takes {each:.0f} KiB of the domU's memory"
    with contextlib.ExitStack() as stack:
        ios = [stack.enter_context(domu.verifying_io(disk=lun, load=LOAD)) for lun in luns]
        for io in ios:
            io.await_answers(ANSWERS)
        grants = granted(domu)
    most = memory(domu, "MemTotal") // 4 // SHARE
    assert grants > ONE_REQUEST * disks, f"{disks} busy disks have {grants} grants: too few to tell"
    assert grants <= most + ONE_REQUEST * disks, (
        f"{disks} disks have {grants} grants together, {most} are an eighth of the memory"
    )
