"""A child process that can't outlive this one, and its stderr.

`setpriv --pdeathsig KILL` asks the kernel to kill the child when the thread that forked it
ends: the reactor's, which lives as long as the process. Had the parent died before that
request, nobody would send the signal; so a shell compares its parent with the one expected
before it becomes QEMU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from emu.deadline import scale
from emu.errors import InputError, RigError
from emu.hosttools import installs
from emu.reactor import reactor

_ONLY_UNDER_PARENT = '[ "$PPID" = "$0" ] && exec "$@"'
_STDERR_LINES = 6
_KILLED_WITHIN = 10.0


class Child:
    """A running child; `pid`, and after its end `status` (negative: the signal)."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = popen.pid
        self.log = log
        self.status: int | None = None
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._ended = threading.Event()
        self._on_end: list[Callable[[], None]] = []

    @classmethod
    def spawn(cls, argv: Sequence[str], fds: Sequence[int], log: Path) -> Child:
        """Start `argv` with descriptors `fds` (same numbers), its stdout and stderr in `log`.

        Raises InputError when the program is not there.
        """
        if not shutil.which(argv[0]):
            raise InputError(f"{argv[0]} is not installed", hint=installs(argv[0]))
        if not shutil.which("setpriv"):
            raise InputError("setpriv is not installed", hint="apt install util-linux")
        return reactor().call(lambda: cls._spawn(argv, fds, log), what=f"{argv[0]} to start")

    @classmethod
    def _spawn(cls, argv: Sequence[str], fds: Sequence[int], log: Path) -> Child:
        guard = ["setpriv", "--pdeathsig", "KILL", "--"]
        guard += ["sh", "-c", _ONLY_UNDER_PARENT, str(os.getpid())]
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [*guard, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(fds),
                # Ctrl-C at the terminal is for us; we end QEMU.
                start_new_session=True,
            )
        child = cls(popen, log)
        reactor().loop.add_reader(child._pidfd, child._reap)
        return child

    def _reap(self) -> None:
        if self._pidfd < 0:
            return
        reactor().loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self.status = self._popen.wait()
        for callback in self._on_end:
            callback()
        self._ended.set()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the reactor when the child has ended (or at once)."""

        def add() -> None:
            if self.status is None:
                self._on_end.append(callback)
            else:
                callback()

        reactor().call(add)

    @property
    def running(self) -> bool:
        return self.status is None

    def wait(self, timeout: float) -> bool:
        """Wait for the end; whether it came within `timeout` seconds."""
        return self._ended.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""

        def send() -> None:
            if self._pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

        reactor().call(send)
        if not self.wait(_KILLED_WITHIN * scale()):
            raise RigError(f"process {self.pid} did not end {_KILLED_WITHIN:g} s after SIGKILL")

    def last_words(self) -> list[str]:
        """The first and the last lines of its stderr (there may be a register dump between)."""
        try:
            text = self.log.read_bytes()[-65536:].decode("utf-8", "replace")
        except OSError:
            return []
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) <= 2 * _STDERR_LINES:
            return lines
        return [*lines[:_STDERR_LINES], "…", *lines[-_STDERR_LINES:]]

    def epitaph(self) -> str:
        """How it ended: "status 1", "killed by SIGKILL"."""
        if self.status is None:
            return "still running"
        if self.status < 0:
            try:
                return f"killed by {signal.Signals(-self.status).name}"
            except ValueError:
                return f"killed by signal {-self.status}"
        return f"status {self.status}"
