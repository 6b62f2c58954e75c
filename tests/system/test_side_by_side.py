"""Two hosts at once: each its own, from one checkpoint, at little more memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emu.images.cache import Cache
from emu.lab.run import driver_for, load_driver
from emu.lab.stack import Inputs, Stack, running
from emu.progress import Progress

MEMORY_LIMIT = 200 << 20
"""Bytes that one more host may take of its own."""


def attach(stack: Stack, order: int, cache: Cache) -> int:
    """Load both drivers and attach; the ring's pages."""
    for end, channel, parameters in (
        ("back", stack.host.dom0, {}),
        ("front", stack.domain.channel, {"max_ring_page_order": order}),
    ):
        driver = driver_for(end, "patched", stack.inputs, cache, Progress())
        load_driver(channel, driver, cache, parameters)
    stack.domain.attach(stack.lun)
    return stack.domain.wait_connected(timeout=60).pages


def private_bytes(pid: int) -> int:
    """Memory that is this process's alone (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) * 1024


def test_two_hosts_share_nothing(inputs: Inputs, cache: Cache) -> None:
    with (
        running(inputs, cache, Progress()) as one,
        running(inputs, cache, Progress()) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        assert one.machine.rundir.path != other.machine.rundir.path
        assert private_bytes(other.machine.pid) < MEMORY_LIMIT
        orders = {one: 4, other: 1}
        jobs = [pool.submit(attach, stack, order, cache) for stack, order in orders.items()]
        assert [job.result() for job in jobs] == [16, 2]
        for stack, text in ((one, "the first"), (other, "the second")):
            stack.domain.channel.run(
                f"echo {text} | dd of=/dev/xvda bs=4k conv=sync,fsync 2>/dev/null", timeout=60
            )
        for stack, text in ((one, "the first"), (other, "the second")):
            read = f"dd if={stack.lun.device} bs=512 count=1 iflag=direct 2>/dev/null"
            answer = stack.host.dom0.run(read, timeout=60).stdout
            assert answer.rstrip(b"\0") == f"{text}\n".encode()
