"""`emu shell`: a terminal, or one command, in a guest of a running stack.

The guest agent provides a pseudo-terminal, so that line editing, job control and window size
are the guest's. Our terminal only passes bytes; Ctrl-] is the only key that it handles.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from emu.channel.channel import Channel, CommandFailed, Process
from emu.errors import EmuError
from emu.images.context import BuildContext
from emu.images.modules import Driver, End
from emu.lab.report import SOURCES
from emu.lab.run import STARTING
from emu.stack.drivers import check_choice, connect, drivers_for
from emu.stack.stack import Stack, prepare, running
from emu.stack.wish import Wish
from emu.xen import queues
from emu.xen.disk import FIRST, NamedDisk
from emu.xen.ring import Ring
from emu.xen.vdev import virtual_device

Guest = Literal["dom0", "domu"]
GUESTS: tuple[Guest, ...] = ("dom0", "domu")
PROMPT: dict[Guest, str] = {"dom0": "dom0# ", "domu": "domU# "}

LEAVE = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""
_CHUNK = 65536
_GLANCE = 0.5
"""Seconds between two checks whether a guest is in trouble."""
_LAST = 2.0
"""Seconds for data in flight to or from the guest at the end."""


@dataclass(frozen=True)
class Attachment:
    """Drivers to load before the shell starts, and the size of the ring the disk gets."""

    ring_pages: int
    disk: NamedDisk = FIRST
    front: str = "patched"
    back: str = "patched"


@dataclass(frozen=True)
class TerminalFds:
    """Descriptors of the shell's input and output; `stdin` None: no input."""

    stdin: int | None = 0
    stdout: int = 1
    stderr: int = 2


@contextlib.contextmanager
def opened(wish: Wish, attachment: Attachment | None, context: BuildContext) -> Iterator[Stack]:
    """The stack for a shell; with an attachment its LUN is attached to the domU.

    Raises as `stack.prepare` and `stack.running`; NotHeld when the disk does not connect.
    """
    built: dict[End, Driver] = {}
    if attachment:
        check_choice(wish, context, front=attachment.front, back=attachment.back)
    with context.progress.stage("preparing"):
        artifacts = prepare(wish, context)
        if attachment:
            front, back = attachment.front, attachment.back
            built = drivers_for(artifacts, context, front=front, back=back)
    with contextlib.ExitStack() as entered:
        with context.progress.stage(STARTING):
            stack = entered.enter_context(running(artifacts, context))
        if attachment:
            with context.progress.stage(
                f"loading the drivers, attaching {stack.lun.device} as {attachment.disk.name}"
            ):
                ring = connect(
                    stack, built, context.cache, attachment.ring_pages, disk=attachment.disk
                )
            for line in _attached(stack, ring, attachment.disk.name):
                context.progress.note(line)
        yield stack


def _attached(stack: Stack, ring: Ring, disk: str) -> list[str]:
    """The ring of the attached disk, and where debugfs shows it."""
    number = virtual_device(disk)
    places = {
        "domU": (ring.views.front, f"{queues.FRONT_ROOT}/vbd-{number}"),
        "dom0": (ring.views.back, f"{queues.BACK_ROOT}/vbd-{stack.domain.domid}-{number}"),
    }
    seen = [f"{place} in {guest}" for guest, (view, place) in places.items() if view]
    return [
        f"{disk}: ring of {ring.pages} pages, {ring.requests} requests, "
        f"{len(ring.queues)} queue(s), from {SOURCES[ring.source]}",
        f"{disk}: {' and '.join(seen)} show its queues"
        if seen
        else f"{disk}: these drivers show no queues in debugfs",
    ]


def channel_of(stack: Stack, guest: Guest) -> Channel:
    """The command channel of one of the stack's guests."""
    return stack.host.dom0 if guest == "dom0" else stack.domain.channel


def pipe(channel: Channel, command: str | None, files: TerminalFds) -> int:
    """Run one command, or the script on standard input, without a terminal.

    Output is passed on byte for byte. Returns the exit status, 128 + n after signal n.
    Raises ChannelLost, BrokenPipeError (nobody reads our output).
    """
    argv = ["sh"] if command is None else ["sh", "-c", command]
    with channel.spawn(argv, cwd="/root", env=_environ()) as process, _Wake() as wake:
        pumps = [
            _Pump(functools.partial(process.read, stream=stream), into, process, wake)
            for stream, into in ((1, files.stdout), (2, files.stderr))
        ]
        source = files.stdin
        if source is None:
            process.close_stdin()
        while not all(pump.over for pump in pumps):
            wake.wait(source)
            if source is not None and wake.readable(source):
                data = os.read(source, _CHUNK)
                with contextlib.suppress(BrokenPipeError):  # it ended, or reads no more
                    process.sendall(data) if data else process.close_stdin()
                source = source if data else None
        for pump in pumps:
            pump.finish()
    return _status(process)


def interactive(
    stack: Stack, guest: Guest, files: TerminalFds, report: Callable[[str], None]
) -> int | None:
    """A shell of the guest's on our terminal `files.stdin`, until it ends or Ctrl-] is typed.

    `report` gets one line each time a guest gets into trouble; the shell stays, for
    inspection, as long as QEMU runs. The terminal's modes are always restored. Returns the
    shell's exit status, or None for Ctrl-]. Raises what ended the machine.
    """
    assert files.stdin is not None
    channel, watch = channel_of(stack, guest), stack.machine.watch
    reported = len(watch.findings)
    with contextlib.ExitStack() as opened:
        opened.enter_context(_raw(files.stdin))
        wake = opened.enter_context(_Wake(signal.SIGWINCH, signal.SIGCONT))
        environ = {**_environ(), "PS1": PROMPT[guest]}
        size = window_size(files.stdin)
        process = opened.enter_context(
            channel.spawn(["sh", "-i"], pty=size, cwd="/root", env=environ)
        )
        # Not `read`, which raises at the first trouble.
        pump = _Pump(process.recv, files.stdout, process, wake)
        typist = opened.enter_context(_Typist(process))
        while not pump.over:
            wake.wait(files.stdin, _GLANCE)
            if wake.signalled:
                wake.signalled = False
                tty.setraw(files.stdin, termios.TCSADRAIN)  # reset by `fg` of the shell
                process.resize(*window_size(files.stdin))
            if wake.readable(files.stdin):
                data, leave, _ = _read(files.stdin).partition(LEAVE)
                typist.type(data)
                if leave or not data:
                    return None
            for finding in watch.findings[reported:]:
                report(f"{finding.guest}: {finding.name}: {finding.line}")
                reported += 1
        try:
            pump.finish()
        except EmuError:
            if not stack.machine.running:
                watch.check()
            raise
    return _status(process)


def window_size(terminal: int) -> tuple[int, int]:
    """Rows and columns of a terminal; 24 and 80 when unknown."""
    try:
        size = os.get_terminal_size(terminal)
    except OSError:
        return 24, 80
    return size.lines or 24, size.columns or 80


def _environ() -> dict[str, str]:
    return {"HOME": "/root", "TERM": os.environ.get("TERM", "vt100")}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, _CHUNK)
    except OSError:  # EIO: the terminal has hung up
        return b""


def _status(process: Process) -> int:
    ended = process.ended or process.wait(_LAST)
    if ended.status is not None:
        return ended.status
    return 128 + (ended.signal or 0)


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    before: list[Any] = termios.tcgetattr(terminal)
    try:
        # Not TCSAFLUSH: keep what was typed while the guests started.
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


class _Wake:
    """Wakes the main thread from its wait for input: on a signal, or by another thread."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.signalled = False
        self._ready: list[int] = []
        self._closing = threading.Lock()
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Wake:
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = {number: signal.signal(number, self._on_signal) for number in self._signals}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        with self._closing:
            for end in (self._out, self._in):
                os.close(end)
            self._in = -1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        with contextlib.suppress(OSError):
            os.write(self._in, b"s")

    def wake(self) -> None:
        """Wake the main thread; called by another."""
        with self._closing, contextlib.suppress(OSError):
            if self._in >= 0:
                os.write(self._in, b"w")

    def wait(self, source: int | None, seconds: float | None = None) -> None:
        """Wait for input, a wake-up, or the time-out."""
        sources = [self._out] if source is None else [self._out, source]
        self._ready, _, _ = select.select(sources, [], [], seconds)
        if self._out in self._ready:
            with contextlib.suppress(OSError):
                os.read(self._out, 4096)

    def readable(self, source: int) -> bool:
        """Whether the last wait found input."""
        return source in self._ready


class _Pump(threading.Thread):
    """Copies one output stream of a command; a slow reader blocks the guest and nothing else."""

    def __init__(
        self, read: Callable[[int], bytes], into: int, process: Process, wake: _Wake
    ) -> None:
        super().__init__(name="output", daemon=True)
        self.over = False
        self._read, self._into, self._process, self._wake = read, into, process, wake
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while data := self._read(_CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._into, view) :]
        except CommandFailed:
            pass  # reported by its status
        except BaseException as error:
            self._error = error
            self._process.close()  # else its other output would not end
        self.over = True
        self._wake.wake()

    def finish(self) -> None:
        """Wait for the end. Raises the error that ended it."""
        self.join()
        if self._error is not None:
            raise self._error


class _Typist(threading.Thread):
    """Sends typed bytes in a thread: Ctrl-] must work while the guest takes none."""

    def __init__(self, process: Process) -> None:
        super().__init__(name="typed", daemon=True)
        self._process = process
        self._typed: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def __enter__(self) -> _Typist:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._typed.put(b"")
        self._process.close()
        self.join(_LAST)

    def type(self, data: bytes) -> None:
        """Queue bytes; never waits."""
        if data:
            self._typed.put(data)

    def run(self) -> None:
        with contextlib.suppress(EmuError, BrokenPipeError):
            while data := self._typed.get():
                self._process.sendall(data)
