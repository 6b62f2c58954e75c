"""A command that runs in a guest, as this machine sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from emu.channel.changes import Changes
from emu.channel.frames import PAYLOAD_MAX, ExitKind, Frame, ToGuest, ToHost
from emu.channel.result import (
    Arg,
    ChannelLost,
    CommandFailed,
    CommandResult,
    CommandTimeout,
    Ended,
    shown,
)
from emu.channel.stream import Pipe
from emu.deadline import Deadline
from emu.errors import EmuError

Output = Callable[[int, bytes], None]
"""Takes what a command prints: stream (1 stdout, 2 stderr) and bytes. It must not block."""

Timeout = float | Deadline | None
"""Seconds before scaling, a deadline that runs already, or no limit."""


class Sender(Protocol):
    """What a command asks of the channel it runs on."""

    name: str

    def send(self, type: int, id: int, payload: bytes = b"", stream: int = 0) -> None: ...
    def check(self, deadline: Deadline | None) -> None:
        """Raise what should end a wait (ChannelLost, or what the guard raises)."""

    def forget(self, id: int) -> None: ...


class Process:
    """A command that runs in the guest. Any thread may use it; a channel can lie on it.

    Output waits in at most one window per stream until it is read, and then the guest's
    side waits; with `on_output` it goes there instead, at once.
    """

    def __init__(
        self,
        channel: Sender,
        id: int,
        argv: tuple[Arg, ...],
        *,
        window: int,
        input_credit: int,
        chunk: int,
        on_output: Output | None = None,
    ) -> None:
        self.argv = argv
        self._channel = channel
        self.id = id
        self._window = window
        self._chunk = min(chunk, PAYLOAD_MAX)
        self._on_output = on_output
        self._pipe: Pipe | None = None
        self._changes = Changes()
        self._waiting: dict[int, deque[bytes]] = {1: deque(), 2: deque()}
        self._owed = {1: 0, 2: 0}
        self._input_credit = input_credit
        self._input_ended = False
        self._closed = False
        self._lost: ChannelLost | None = None
        self._ended: Ended | None = None
        self._last_error = b""

    # For the caller.

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it runs."""
        return self._ended

    def read(self, size: int = 65536, timeout: Timeout = None, stream: int = 1) -> bytes:
        """Up to `size` bytes of its output (stream 2: stderr); b"" at the end.

        `timeout` in seconds before scaling. Raises ChannelLost, CommandTimeout.
        """
        return self._read(size, stream, _deadline("output", timeout))

    def _read(
        self, size: int, stream: int, deadline: Deadline | None, guarded: bool = True
    ) -> bytes:
        waiting = self._waiting[stream]
        self._wait(
            lambda: bool(waiting) or self._ended is not None or self._closed, deadline, guarded
        )
        with self._changes:
            if not waiting:
                return b""
            data = waiting.popleft()
            if len(data) > size:
                waiting.appendleft(data[size:])
                data = data[:size]
            self._owed[stream] += len(data)
            owed = self._owed[stream]
            if owed >= self._window // 4:
                self._owed[stream] = 0
        if owed >= self._window // 4:
            self._grant(stream, owed)
        return data

    def write(self, data: bytes, timeout: Timeout = None) -> None:
        """Hand bytes to its standard input; waits while the guest takes no more.

        Raises BrokenPipeError when it ended or its input was closed, ChannelLost,
        CommandTimeout.
        """
        self._write(data, _deadline("its input to be read", timeout))

    def _write(self, data: bytes, deadline: Deadline | None, guarded: bool = True) -> None:
        at = 0
        while at < len(data):
            self._wait(lambda: self._input_credit > 0 or self._over, deadline, guarded)
            with self._changes:
                if self._over or self._input_ended:
                    raise BrokenPipeError(f"{shown(self.argv)} takes no more input")
                # 0 if another writer was quicker; then wait once more.
                size = min(self._chunk, self._input_credit, len(data) - at)
                self._input_credit -= size
                if size:
                    self._channel.send(ToGuest.STDIN, self.id, bytes(data[at : at + size]))
            at += size

    def close_stdin(self) -> None:
        """Close its standard input (for a terminal, write b"\\x04" instead)."""
        with self._changes:
            if self._over or self._input_ended:
                return
            self._input_ended = True
            self._channel.send(ToGuest.STDIN_END, self.id)

    def wait(self, timeout: Timeout = None) -> Ended:
        """Wait for its end; `timeout` in seconds before scaling. It is not killed.

        Raises CommandTimeout, ChannelLost, or what the channel's guard raises.
        """
        deadline = _deadline(f"{shown(self.argv)} to end", timeout)
        self._wait(lambda: self._ended is not None, deadline)
        assert self._ended is not None
        return self._ended

    def kill(self) -> None:
        """SIGKILL it, its session and its descendants; does not wait."""
        self._channel.send(ToGuest.SIGNAL, self.id, struct.pack("<iI", signal.SIGKILL, 1))

    def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        self._channel.send(ToGuest.SIGNAL, self.id, struct.pack("<iI", number, 0))

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal it runs on."""
        self._channel.send(ToGuest.RESIZE, self.id, struct.pack("<HH", rows, columns))

    # A byte stream.

    def recv(self, size: int) -> bytes:
        """As a socket's: b"" at its end or after close(); CommandFailed when it failed.

        The guard is not asked: trouble in a guest does not end a stream.
        """
        data = self._read(size, 1, None, guarded=False)
        if not data and (failed := self._failed()):
            raise failed
        return data

    def sendall(self, data: bytes) -> None:
        """As a socket's; the guard is not asked."""
        self._write(data, None, guarded=False)

    async def attach(self, protocol: asyncio.Protocol) -> Pipe:
        """Use it as the stream of another channel; in the reactor's thread."""
        self._pipe = pipe = Pipe(self, protocol)
        with self._changes:
            held = b"".join(self._waiting[1])
            self._waiting[1].clear()
            owed = self._owed[1] + len(held)
            self._on_output = lambda stream, data: pipe.received(data) if stream == 1 else None
        protocol.connection_made(pipe)
        if held:
            pipe.received(held)
        if owed:
            self._grant(1, owed)
        pipe.changed()
        return pipe

    def offer(self, data: bytes) -> int:
        """Hand over what its standard input takes without a wait; how many bytes that was."""
        with self._changes:
            size = 0 if self._over or self._input_ended else min(self._input_credit, len(data))
            self._input_credit -= size
            for at in range(0, size, self._chunk):
                part = data[at : min(at + self._chunk, size)]
                self._channel.send(ToGuest.STDIN, self.id, part)
        return size

    @property
    def over(self) -> bool:
        """Whether it has ended, was closed, or can't be reached any more."""
        return self._over or self._lost is not None

    @property
    def failure(self) -> EmuError | None:
        """CommandFailed or ChannelLost, when it is over for that reason."""
        return self._lost or self._failed()

    def _failed(self) -> CommandFailed | None:
        ended = self._ended
        if self._closed or ended is None or ended.status == 0:
            return None
        result = CommandResult(self.argv, ended.status, ended.signal, b"", self._last_error, 0.0)
        return CommandFailed(self._channel.name, result, ended)

    def close(self) -> None:
        """End it; readers and writers return."""
        with self._changes:
            if self._closed:
                return
            self._closed = True
        self.wake()
        if self._ended is None:
            self.kill()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # For the channel, in the reactor's thread but for `lose` and `wake`.

    def take(self, frame: Frame) -> None:
        """A frame of this command."""
        if frame.type == ToHost.OUTPUT and frame.stream in self._waiting:
            self._take_output(frame.stream, frame.payload)
        elif frame.type == ToHost.STDIN_CREDIT:
            with self._changes:
                self._input_credit += frame.numbers("<I")[0]
            self.wake()
        elif frame.type == ToHost.EXITED:
            kind, value = frame.numbers("<Ii")
            self._channel.forget(self.id)
            with self._changes:
                self._ended = _ended(kind, value)
            self.wake()

    def lose(self, error: ChannelLost) -> None:
        """The channel is gone: all waits end with `error`."""
        with self._changes:
            if self._ended is None:
                self._lost = error
        self.wake()

    def wake(self) -> None:
        """Something has changed that a wait may be for."""
        self._changes.notify()
        if self._pipe is not None:
            self._pipe.changed()

    def _take_output(self, stream: int, data: bytes) -> None:
        if stream == 2:
            self._last_error = (self._last_error + data)[-4096:]
        if self._on_output is not None:
            self._on_output(stream, data)
        if self._on_output is not None or self._closed:
            self._grant(stream, len(data))
            return
        with self._changes:
            self._waiting[stream].append(data)
        self._changes.notify()

    @property
    def _over(self) -> bool:
        return self._ended is not None or self._closed

    def _grant(self, stream: int, size: int) -> None:
        if self._ended is None:
            self._channel.send(ToGuest.CREDIT, self.id, struct.pack("<I", size), stream)

    def _wait(
        self, ready: Callable[[], bool], deadline: Deadline | None, guarded: bool = True
    ) -> None:
        def left() -> float | None:
            return None if deadline is None else deadline.left

        def check() -> None:
            if guarded:
                self._channel.check(deadline)

        in_time = self._changes.wait(lambda: ready() or self._lost is not None, left, check)
        if self._lost is not None and not ready():
            raise ChannelLost(
                f"{self._lost.message} while {shown(self.argv)} ran", hint=self._lost.hint
            ) from self._lost
        if in_time or deadline is None:
            return
        command = shown(self.argv)
        what = deadline.what + ("" if command in deadline.what else f": {command}")
        raise CommandTimeout(f"{self._channel.name}: waited {deadline.seconds:g} s for {what}")


def _deadline(what: str, timeout: Timeout) -> Deadline | None:
    return Deadline(what, timeout) if isinstance(timeout, (int, float)) else timeout


def _ended(kind: int, value: int) -> Ended:
    if kind == ExitKind.SIGNAL:
        return Ended(None, value)
    if kind == ExitKind.NOT_STARTED:
        return Ended(127, None, os.strerror(value))
    return Ended(value, None)
