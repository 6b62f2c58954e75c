"""Who holds a lock of the cache, what it does, and whether it gets on with it.

The holder writes itself into the lock's file, and touches that whenever its progress is
reported. Who waits reads it, and watches the holder's CPU time: a holder that is stopped, or
that neither reports nor computes, shows no progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from emu.deadline import Deadline
from emu.errors import RigError
from emu.progress import Progress

PATIENCE = 600.0
"""Seconds (before scaling) without a sign of progress that a holder is granted."""
TICK = 2.0
"""Seconds between two reports of who waits, and between two touches of who holds."""
_CPU = 1.0
"""Seconds of CPU time that count as a sign of progress; one that only polls takes 0.6 in 600."""
_SHOWN = 80
_held: dict[int, float] = {}
"""Descriptors of the lock files this process holds, with the time of the last touch."""


@dataclass(frozen=True)
class Holder:
    """A process (and its thread `tid`) that holds a lock; `since` is a Unix time in seconds.

    `started` is the time of its start in clock ticks since boot: a pid alone may be used again.
    """

    pid: int
    tid: int
    started: int
    command: str
    does: str
    since: float

    @classmethod
    def current(cls, does: str) -> Holder:
        """This thread, which `does` something ("builds kernel-lab")."""
        pid = os.getpid()
        fields = _stat(Path(f"/proc/{pid}/stat"))
        started = int(fields[19]) if fields else 0
        return cls(pid, threading.get_native_id(), started, _command(), does, time.time())

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"pid {self.pid} ({self.command}), which {self.does} since {since}"

    @property
    def state(self) -> str:
        """Its state as proc(5) has it ("T" is stopped), "" if it is not seen from here."""
        fields = _stat(Path(f"/proc/{self.pid}/stat"))
        return fields[0] if fields and int(fields[19]) == self.started else ""

    @property
    def cpu(self) -> float:
        """Seconds of CPU time of the thread, and of all processes it started and still has."""
        if not self.state:
            return 0.0
        every = {int(path.parent.name): _stat(path) for path in Path("/proc").glob("[0-9]*/stat")}
        ticks = _ticks(_stat(Path(f"/proc/{self.pid}/task/{self.tid}/stat")), slice(11, 13))
        ticks += _ticks(every.get(self.pid, []), slice(13, 15))  # of children it waited for
        family = {self.pid}
        while True:
            more = {pid for pid, stat in every.items() if stat and int(stat[1]) in family} - family
            if not more:
                return ticks / os.sysconf("SC_CLK_TCK")
            family |= more
            ticks += sum(_ticks(every[pid], slice(11, 15)) for pid in more)


@contextlib.contextmanager
def written(handle: int, does: str) -> Iterator[None]:
    """Name this thread in a lock's file, which is open as `handle`, while it holds the lock."""
    text = json.dumps(asdict(Holder.current(does))).encode()
    with contextlib.suppress(OSError):  # a full disk: the lock holds, its holder is not named
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)
    _held[handle] = time.monotonic()
    try:
        yield
    finally:
        del _held[handle]
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)


def read(path: Path) -> Holder | None:
    """The holder that a lock's file names, None if it names none (just now)."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class Watch:
    """Watches the holder of the lock whose file is `path`, until that is free or stuck."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self.holder = read(path)
        self._began = time.monotonic()
        self._sign = self._signs()
        self._deadline = Deadline(what, PATIENCE)
        self._next = self._began + TICK

    def __str__(self) -> str:
        return str(self.holder or f"another process, which {self.what}")

    def check(self, progress: Progress) -> None:
        """Report who is waited for, every TICK seconds. Raises RigError if it is stuck."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TICK
        holder, sign = read(self.path), self._signs()
        if holder != self.holder or sign[0] != self._sign[0] or sign[1] - self._sign[1] >= _CPU:
            self.holder, self._sign = holder, self._signs()
            self._deadline = Deadline(self.what, PATIENCE)
        stopped = self.holder is not None and self.holder.state in ("T", "t")
        suffix = ", stopped" if stopped else ""
        progress.tick(f"waiting for {self}{suffix} ({time.monotonic() - self._began:.0f} s)")
        if self._deadline.passed:
            why = "it is stopped" if stopped else "it shows no progress"
            pid = f"kill {self.holder.pid}" if self.holder else "see `ps`"
            resume = f", kill -CONT {self.holder.pid} resumes it" if self.holder and stopped else ""
            raise RigError(
                f"waited {self._deadline.seconds:.0f} s for {self}: {why}",
                hint=f"{pid} ends it{resume}; EMU_TIMEOUT_SCALE=2 doubles the wait",
            )

    def _signs(self) -> tuple[int, float]:
        """When the holder last touched the file (ns), and its CPU time in seconds."""
        try:
            touched = self.path.stat().st_mtime_ns
        except OSError:
            touched = 0
        return touched, self.holder.cpu if self.holder else 0.0


class Touching(Progress):
    """Passes everything on to another progress, and touches the lock files this process holds.

    Whatever ticks has a limit of its own, so a tick is a sign that it will come to an end.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Pass it on."""
        touch()
        with self._progress.stage(what):
            yield

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        """Pass it on."""
        touch()
        self._progress.tick(what, done, total)

    def note(self, line: str) -> None:
        """Pass it on."""
        self._progress.note(line)


def touch() -> None:
    """Touch the lock files that this process holds, not more often than every TICK seconds."""
    now = time.monotonic()
    for handle, last in list(_held.items()):
        if now - last >= TICK:
            _held[handle] = now
            with contextlib.suppress(OSError):
                os.utime(handle)


def _command() -> str:
    """This process's command, its program and script by their names alone."""
    words = [Path(word).name if n < 2 else word for n, word in enumerate(sys.orig_argv)]
    text = " ".join(" ".join(words).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _stat(path: Path) -> list[str]:
    """The fields of a stat file of proc(5) from the third (the state) on; empty if it is gone."""
    try:
        return path.read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return []


def _ticks(stat: list[str], fields: slice) -> int:
    return sum(map(int, stat[fields]))
