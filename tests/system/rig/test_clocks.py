"""Instruction time: what the guest measures does not depend on the machine that runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emu.images.cache import Cache
from emu.lab.run import connect, drivers_for
from emu.lab.stack import Inputs, Wish, prepare, running
from emu.progress import Progress

JOB = (
    "read before rest < /proc/uptime; "
    "dd if=/dev/xvda of=/dev/null bs=64k count=128 iflag=direct 2>/dev/null; "
    "read after rest < /proc/uptime; echo $before $after"
)


def guest_seconds(inputs: Inputs, cache: Cache) -> float:
    """How long the domU thinks reading 8 MiB through the ring took; one command, no host."""
    with running(inputs, cache, Progress()) as stack:
        connect(stack, drivers_for(inputs, cache, Progress()), cache, pages=1)
        before, after = stack.domain.channel.run(JOB, timeout=200).text.split()
        return float(after) - float(before)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_load_on_the_host_does_not_change_guest_time(cache: Cache) -> None:
    inputs = prepare(Wish(clock="icount"), cache, Progress())
    alone = guest_seconds(inputs, cache)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        loaded = guest_seconds(inputs, cache)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    # /proc/uptime counts in hundredths.
    assert loaded == pytest.approx(alone, abs=0.011 + 0.01 * alone)
