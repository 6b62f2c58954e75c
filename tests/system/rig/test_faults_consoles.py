"""Console floods: the runner stays small, the channel stays exact."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from emu.channel.channel import Channel
from emu.deadline import Deadline
from emu.machine import consolelog
from emu.stack.stack import Stack

pytestmark = pytest.mark.timeout(240)

MIB = 2**20


def resident() -> int:
    """Bytes of RAM that this process holds (proc(5): statm, in pages)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def half_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Logs of 2 × 64 KiB instead of 2 × 8 MiB: consoles print a few 100 KiB a second here."""
    limit = 64 * 1024
    monkeypatch.setattr(consolelog.CappedLog.__init__, "__defaults__", (limit, lambda error: None))
    return limit


def test_logs_and_memory_stay_bounded_in_a_flood(half_limit: int, stack: Stack) -> None:
    """`yes` on both consoles: the logs are cut, with a note, and RAM is bounded."""
    dom0, domu = stack.host.dom0, stack.domain.channel
    log = stack.machine.rundir.log
    before = resident()
    floods = [
        dom0.spawn("exec yes this guest prints without end > /dev/ttyS1"),
        domu.spawn("exec yes this guest prints without end > /dev/hvc0"),
    ]
    until = Deadline("the domU's log to be cut", 60)
    while "(cut here: " not in first_line(log("u1")):
        assert not until.passed, (
            f"{log('u1').stat().st_size} B of the domU's console are logged: {until}"
        )
        for channel in (dom0, domu):
            assert channel.run(["echo", "still here"], timeout=20).text == "still here\n"
        assert resident() - before < 32 * MIB
    for path in stack.machine.rundir.path.glob("*.log*"):
        assert path.stat().st_size <= half_limit + 4096, path
    assert first_line(log("u1")).count("lines") == 1
    assert "this guest prints without end" in log("dom0").read_text()
    stack.machine.watch.check()
    for flood in floods:
        flood.kill()
        flood.wait(20)


def first_line(path: Path) -> str:
    with path.open(errors="replace") as file:
        return file.readline()


@contextmanager
def flooded(channel: Channel) -> Iterator[None]:
    """The guest's kernel prints bursts on all its consoles, at half their speed.

    Under TCG dom0's consoles take about 25 lines a second, with the guest doing nothing else.
    """
    script = (
        "echo on > /proc/sys/kernel/printk_devkmsg; n=0; while :; do for i in 1 2 3 4 5; do "
        'n=$((n+1)); echo "<1>$n: the quick brown fox jumps over the lazy dog" > /dev/kmsg; '
        "done; usleep 100000; done"
    )
    with channel.spawn(script) as flood:
        yield
        flood.kill()
        flood.wait(30)


@pytest.mark.parametrize("commands", [150, pytest.param(1000, marks=pytest.mark.long)])
def test_commands_while_the_kernels_flood_their_consoles(stack: Stack, commands: int) -> None:
    """That many in dom0 and in the domU, eight at once; every byte of every output is checked."""
    logs = [stack.machine.rundir.log(name) for name in ("dom0", "u1")]
    with flooded(stack.host.dom0), flooded(stack.domain.channel):
        before = [path.stat().st_size for path in logs]
        channels = (stack.host.dom0, stack.domain.channel)
        with ThreadPoolExecutor(8) as pool:  # four at a time in each
            wrong = list(pool.map(lambda n: exact(channels[n % 2], n // 2), range(2 * commands)))
        grown = [path.stat().st_size - size for path, size in zip(logs, before, strict=True)]
    assert [one for one in wrong if one] == []
    assert min(grown) > 10 * commands, f"the consoles were quiet: {grown}"
    assert threading.active_count() < 30


def exact(channel: Channel, number: int) -> str:
    """Run a command whose output is known; what was wrong with it, or ""."""
    chance = random.Random(number)
    out = chance.randbytes(chance.choice((0, 1, 100, 5000)))
    err, status, argv = "", 0, ["cat"]
    if number % 4 == 0:
        err, status = chance.randbytes(20).hex(), number % 7
        argv = ["sh", "-c", 'cat; printf %s "$1" >&2; exit "$2"', "sh", err, str(status)]
    answer = channel.run(argv, input=out, timeout=120, check=False)
    got = (answer.stdout, answer.stderr, answer.status)
    return "" if got == (out, err.encode(), status) else f"{channel.name} {number}: {got}"
