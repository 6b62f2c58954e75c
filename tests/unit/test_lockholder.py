"""Waiting for a lock of the cache: who holds it is reported, and for how long it may."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emu.errors import RigError
from emu.images import lockholder
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.progress import Progress

HOLD = """
import subprocess, sys, time
from pathlib import Path
from emu.images.cache import Cache
from emu.images.context import BuildContext
how, seconds = sys.argv[2], float(sys.argv[3])
context = BuildContext(Cache(Path(sys.argv[1])))
def build(into):
    print("holding", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if how == "reports":
            context.progress.tick("something")
        elif how == "computes":
            subprocess.run(["sh", "-c", "n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done"])
        time.sleep(0.05)
context.entry("kernel", {}, build)
"""
Hold = Callable[..., "subprocess.Popen[str]"]


class Reports(Progress):
    """Keeps what was reported, and when."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.lines: list[tuple[float, str]] = []

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        self.tick(what)
        yield

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        self.lines.append((time.monotonic() - self.began, what))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def hold(cache: Cache) -> Iterator[Hold]:
    """Start another process that holds the lock of an entry for so many seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(how: str, seconds: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(cache.root), how, str(seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "holding\n"
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "1")
    monkeypatch.setattr(lockholder, "TICK", 0.1)
    monkeypatch.setattr(lockholder, "PATIENCE", 2.0)


def wait(cache: Cache, reports: Progress) -> None:
    cache.entry("kernel", {}, lambda made: None, reports)


def test_holder_is_reported_at_once_and_again(cache: Cache, hold: Hold) -> None:
    holder = hold("sleeps", 1.5)
    reports = Reports()
    wait(cache, reports)
    who = rf"pid {holder.pid} \(python\S* -c .*\), which builds kernel since \d\d:\d\d:\d\d"
    assert reports.lines[0][0] < 1
    assert re.fullmatch(f"waiting for {who}", reports.lines[0][1])
    assert len(reports.lines) > 4
    for _, line in reports.lines[1:]:
        assert re.fullmatch(rf"waiting for {who} \(\d+ s\)", line)


def test_stuck_holder_is_named_and_not_awaited_for_ever(cache: Cache, hold: Hold) -> None:
    holder = hold("sleeps")
    with pytest.raises(RigError, match=r"waited 2 s for pid .*: it shows no progress") as stuck:
        wait(cache, Reports())
    assert f"pid {holder.pid} (python" in stuck.value.message
    assert f"kill {holder.pid} ends it" in str(stuck.value.hint)
    assert holder.poll() is None


def test_stopped_holder_is_reported_as_stopped(cache: Cache, hold: Hold) -> None:
    holder = hold("computes")
    holder.send_signal(signal.SIGSTOP)
    reports = Reports()
    with pytest.raises(RigError, match=r"waited 2 s for pid .*: it is stopped") as stuck:
        wait(cache, reports)
    assert f"kill -CONT {holder.pid} resumes it" in str(stuck.value.hint)
    assert any(", stopped (" in line for _, line in reports.lines)


@pytest.mark.parametrize("how", ["reports", "computes"])
def test_holder_that_gets_on_is_awaited_beyond_the_limit(
    cache: Cache, hold: Hold, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockholder, "_CPU", 0.1)
    if how == "reports":
        monkeypatch.setattr(lockholder, "PATIENCE", 4.0)  # it touches the file every 2 s
    hold(how, 8)
    reports = Reports()
    wait(cache, reports)
    assert reports.lines[-1][0] > 6


def test_killed_holder_is_awaited_no_more(cache: Cache, hold: Hold) -> None:
    holder = hold("sleeps")
    threading.Timer(0.5, holder.kill).start()
    wait(cache, Reports())


def test_lock_names_nobody_once_it_is_free(cache: Cache) -> None:
    path = cache.root / "locks/debs"
    with cache.lock("debs", "fetches packages", Progress()):
        holder = lockholder.read(path)
        assert holder is not None
        assert (holder.does, holder.state) == ("fetches packages", "R")
    assert lockholder.read(path) is None


def test_another_process_with_the_holders_pid_is_not_the_holder() -> None:
    holder = lockholder.Holder.current("builds")
    other = lockholder.Holder(holder.pid, holder.tid, holder.started + 1, "", "", 0)
    assert holder.state == "R"
    assert holder.cpu > 0
    assert (other.state, other.cpu) == ("", 0)


def test_context_passes_progress_on() -> None:
    class Never(Cache):
        def __init__(self) -> None:
            pass

    reports = Reports()
    context = BuildContext(Never(), reports)
    context.progress.tick("one")
    with context.progress.stage("two"):
        pass
    assert [line for _, line in reports.lines] == ["one", "two"]
    assert BuildContext(Never(), context.progress).progress is context.progress
