"""Frames of many commands over one byte stream: the threads, the handshake, the end.

Reading and writing have a thread each, so that no caller blocks another and a guest that
is paused blocks none: who waits does so on a condition, with a deadline.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

from emu.channel import frames
from emu.channel.frames import Decoder, Frame, ToGuest, ToHost
from emu.channel.result import ChannelLost
from emu.deadline import Deadline
from emu.errors import EmuError, RigError

WINDOW = 512 * 1024
"""Bytes of one output stream that may wait on the host."""
_HELLO_PAUSES = (0.5, 1.0, 2.0)
_CLOSE_GRACE = 1.0
_READ = 1 << 18
_BATCH = 4 * frames.PAYLOAD_MAX
_AGAIN = "hello() takes the channel up again"


class Stream(Protocol):
    """What a channel lies on: a connected socket.socket, or a Process."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...
    def close(self) -> None: ...


class Receiver(Protocol):
    """Who a frame is for."""

    def take(self, frame: Frame) -> None: ...
    def lose(self, error: ChannelLost) -> None: ...


R = TypeVar("R", bound=Receiver)
Guard: TypeAlias = "Callable[[Deadline | None], None]"


class Mux:
    """One connection to a guest agent; owns the stream. Nothing is sent before `hello`."""

    def __init__(
        self,
        stream: Stream,
        name: str,
        on_trouble: Callable[[ChannelLost], None] | None,
        guard: Guard | None,
    ) -> None:
        self.name = name
        self.guard = guard
        self.chunk = frames.PAYLOAD_MAX
        self.input_window = 0
        self._stream = stream
        self._on_trouble = on_trouble
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._receivers: dict[int, Receiver] = {}
        self._lost: ChannelLost | None = ChannelLost(f"{name}: no hello yet")
        self._decoder: Decoder | None = None
        self._welcomed = threading.Event()
        self._ended: ChannelLost | None = None
        self._closed = False
        self._queue: deque[bytes | tuple[int, int, bytes, int]] = deque()
        self._queued = threading.Condition()
        self._seq = 1
        self._reader = threading.Thread(target=self._read, name=f"{name} reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"{name} writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def hello(self, timeout: float) -> None:
        """Introduce this host to the agent, whatever lies in the pipe; ends older commands.

        Raises RigError (no answer, another version), ChannelLost, what the guard raises.
        """
        deadline = Deadline("the guest agent to answer", timeout)
        self._lose(ChannelLost(f"{self.name}: a new hello was sent"), quiet=True)
        decoder = Decoder(nonce := secrets.token_bytes(frames.NONCE_SIZE))
        with self._lock:
            self._decoder = decoder
            self._welcomed.clear()
        greeting = frames.hello(nonce, frames.PAYLOAD_MAX, WINDOW)
        with self._queued:
            self._queue.clear()
            self._seq = 1
        pauses = itertools.chain(_HELLO_PAUSES, itertools.repeat(_HELLO_PAUSES[-1]))
        padding = b""
        while not self._welcomed.is_set():
            with self._queued:
                if not self._queue:  # else nobody has read the last one yet
                    self._queue.append(padding + greeting)
                    self._queued.notify_all()
            # From the second on: an earlier host's half frame would swallow a bare hello.
            padding = frames.PADDING
            self._await_welcome(next(pauses), deadline)
        assert decoder.welcome is not None
        if decoder.welcome.version != frames.VERSION:
            raise RigError(
                f"{self.name}: the guest agent speaks version {decoder.welcome.version} "
                f"of the protocol, this host {frames.VERSION}",
                hint="build the guest images again: emu images",
            )

    def add(self, make: Callable[[int], R]) -> R:
        """Make a receiver for a fresh id. Raises what `check` raises."""
        self.check()
        id_ = next(self._ids)
        receiver = make(id_)
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._receivers[id_] = receiver
        return receiver

    def forget(self, id: int) -> None:
        """Nothing more is for `id`."""
        with self._lock:
            self._receivers.pop(id, None)

    def send(self, type: int, id: int, payload: bytes = b"", stream: int = 0) -> None:
        """Queue a frame; on a lost channel it goes nowhere."""
        with self._queued:
            if self._lost is None:
                self._queue.append((type, id, payload, stream))
                self._queued.notify_all()

    def check(self, deadline: Deadline | None = None) -> None:
        """Raise what the guard raises, or ChannelLost when there is no channel."""
        if self.guard is not None:
            self.guard(deadline)
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Tell the agent, close the stream, end the threads; twice is fine."""
        if self._closed:
            return
        self.send(ToGuest.BYE, 0)
        self._closed = True
        self._lose(ChannelLost(f"{self.name}: the channel was closed"), quiet=True)
        with self._queued:
            self._queued.notify_all()
        self._writer.join(_CLOSE_GRACE)
        if isinstance(self._stream, socket.socket):
            with contextlib.suppress(OSError):  # the other side may have gone first
                self._stream.shutdown(socket.SHUT_RDWR)
        else:
            self._stream.close()
        for thread in (self._writer, self._reader):
            if thread is not threading.current_thread():
                thread.join()
        self._stream.close()

    def _await_welcome(self, seconds: float, deadline: Deadline) -> None:
        end = time.monotonic() + min(seconds, deadline.left)
        while not self._welcomed.wait(max(0.0, min(0.1, end - time.monotonic()))):
            if self.guard is not None:
                self.guard(deadline)
            if self._ended is not None:
                self._lose(self._ended, quiet=True)
                raise self._ended
            if self._closed:
                raise ChannelLost(f"{self.name}: the channel was closed")
            if deadline.passed:
                raise RigError(
                    f"{self.name}: no guest agent answered within {deadline.seconds:g} s",
                    hint="see the guest's console: did emu-agent start?",
                )
            if time.monotonic() >= end:
                return

    def _lose(self, error: ChannelLost, quiet: bool = False) -> None:
        """No answer can come any more: tell everybody who waits."""
        with self._lock:
            worked, self._lost = self._lost is None, error
            receivers = list(self._receivers.values())
            self._receivers.clear()
        for receiver in receivers:
            receiver.lose(error)
        if worked and not quiet and self._on_trouble is not None:
            self._on_trouble(error)

    def _read(self) -> None:
        why: object = "its stream ended"
        try:
            while data := self._stream.recv(_READ):
                self._take(data)
        except (OSError, EmuError) as error:
            why = error
        if not self._closed:
            self._ended = ChannelLost(f"{self.name}: the channel is gone: {why}")
            self._lose(self._ended)

    def _take(self, data: bytes) -> None:
        decoder = self._decoder
        if decoder is None:
            return  # damaged, and no new hello yet
        try:
            joined = decoder.welcome is not None
            received = decoder.feed(data)
            if not joined and decoder.welcome is not None:
                self.chunk = min(decoder.welcome.chunk, frames.PAYLOAD_MAX)
                self.input_window = decoder.welcome.window
                with self._lock:
                    if self._decoder is decoder and not self._closed:
                        self._lost = None
                        self._welcomed.set()
            for frame in received:
                self._dispatch(frame)
        except frames.Damaged as error:
            with self._lock:
                if self._decoder is decoder:
                    self._decoder = None
            self._lose(
                ChannelLost(f"{self.name}: what the guest sent came damaged: {error}", hint=_AGAIN)
            )

    def _dispatch(self, frame: Frame) -> None:
        if frame.type == ToHost.TROUBLE:
            why = frame.payload.decode("utf-8", "replace")
            self._lose(
                ChannelLost(f"{self.name}: what the guest got came damaged: {why}", hint=_AGAIN)
            )
            return
        with self._lock:
            receiver = self._receivers.get(frame.id)
        if receiver is not None:
            receiver.take(frame)

    def _write(self) -> None:
        while True:
            with self._queued:
                self._queued.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._next_batch()
            try:
                self._stream.sendall(batch)
            except (OSError, EmuError):
                return  # the reader meets the same end, and tells

    def _next_batch(self) -> bytes:
        """What waits in the queue, as bytes, up to a few frames of full size."""
        parts: list[bytes] = []
        size = 0
        while self._queue and size < _BATCH:
            item = self._queue.popleft()
            if not isinstance(item, bytes):
                type_, id_, payload, stream = item
                item = frames.encode(type_, id_, self._seq, payload, stream)
                self._seq = (self._seq + 1) & 0xFFFFFFFF
            parts.append(item)
            size += len(item)
        return b"".join(parts)
