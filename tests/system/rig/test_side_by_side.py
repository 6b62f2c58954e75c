"""Two hosts at once: each its own, from one checkpoint, at little more memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import from_environment
from emu.lab.bench import read_rollup
from emu.stack.drivers import connect, drivers_for
from emu.stack.stack import Artifacts, running

MEMORY_LIMIT = 200 << 20
"""Bytes that one more host may take of its own."""


def test_two_hosts_share_nothing(artifacts: Artifacts, cache: Cache) -> None:
    built = drivers_for(artifacts, BuildContext(cache, patched=from_environment()))
    with (
        running(artifacts, BuildContext(cache)) as one,
        running(artifacts, BuildContext(cache)) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        assert one.machine.rundir.path != other.machine.rundir.path
        rollup = Path(f"/proc/{other.machine.pid}/smaps_rollup").read_text()
        memory = read_rollup(rollup)
        assert memory["Private_Clean"] + memory["Private_Dirty"] < MEMORY_LIMIT
        pages = {one: 16, other: 2}
        jobs = [
            pool.submit(connect, stack, built, cache, number, timeout=60)
            for stack, number in pages.items()
        ]
        assert [job.result().pages for job in jobs] == [16, 2]
        for stack, text in ((one, "the first"), (other, "the second")):
            stack.domain.channel.run(
                f"echo {text} | dd of=/dev/xvda bs=4k conv=sync,fsync 2>/dev/null", timeout=60
            )
        for stack, text in ((one, "the first"), (other, "the second")):
            read = f"dd if={stack.lun.device} bs=512 count=1 iflag=direct 2>/dev/null"
            answer = stack.host.dom0.run(read, timeout=60).stdout
            assert answer.rstrip(b"\0") == f"{text}\n".encode()
