"""Instruction time: what a guest measures does not depend on the machine that emulates it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import from_environment
from emu.stack.drivers import connect, drivers_for
from emu.stack.stack import Artifacts, prepare, running
from emu.stack.wish import Wish

JOB = (
    "read before rest < /proc/uptime; "
    "dd if=/dev/xvda of=/dev/null bs=64k count=128 iflag=direct 2>/dev/null; "
    "read after rest < /proc/uptime; echo $before $after"
)


def guest_seconds(artifacts: Artifacts, cache: Cache) -> float:
    """Seconds, on the domU's clock, of reading 8 MiB through the ring; one command."""
    with running(artifacts, BuildContext(cache)) as stack:
        connect(
            stack,
            drivers_for(artifacts, BuildContext(cache, patched=from_environment())),
            cache,
            pages=1,
        )
        before, after = stack.domain.channel.run(JOB, timeout=200).text.split()
        return float(after) - float(before)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_guest_time_does_not_depend_on_load(cache: Cache) -> None:
    artifacts = prepare(Wish(clock="icount"), BuildContext(cache))
    alone = guest_seconds(artifacts, cache)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        loaded = guest_seconds(artifacts, cache)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    # /proc/uptime counts in hundredths.
    assert loaded == pytest.approx(alone, abs=0.011 + 0.01 * alone)
