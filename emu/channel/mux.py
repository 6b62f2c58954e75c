"""Frames of many commands over one byte stream: the handshake, the queue, the end.

The event loop reads and writes, so no caller blocks another, and a paused guest blocks none.
A caller waits on a condition, with a deadline, and is woken by what it waits for or by trouble.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from emu.channel import frames
from emu.channel.changes import Changes, Guard
from emu.channel.frames import Decoder, Frame, ToGuest, ToHost
from emu.channel.result import ChannelLost
from emu.channel.stream import Stream, attach
from emu.deadline import Deadline, scale
from emu.errors import GuestError, RigError
from emu.reactor import reactor

WINDOW = 512 * 1024
"""Bytes of one output stream that may wait here for a reader."""
_HELLO_PAUSES = (0.5, 1.0, 2.0)
_CLOSE_GRACE = 1.0
_LOOP = 10.0
"""Seconds in which the event loop opens or closes a stream."""
_BATCH = 4 * frames.PAYLOAD_MAX
_AGAIN = "hello() takes the channel up again"


class Receiver(Protocol):
    """Who a frame is for."""

    def take(self, frame: Frame) -> None:
        """A frame has come; in the reactor's thread."""

    def lose(self, error: ChannelLost) -> None:
        """Nothing more comes; on any thread."""

    def wake(self) -> None:
        """Waits should ask the guard; on any thread."""


R = TypeVar("R", bound=Receiver)


class Mux(asyncio.Protocol):
    """One connection to a guest agent; owns the stream. Nothing is sent before `hello`."""

    def __init__(
        self,
        stream: socket.socket | Stream,
        name: str,
        on_trouble: Callable[[ChannelLost], None] | None,
        guard: Guard | None,
    ) -> None:
        self.name = name
        self.chunk = frames.PAYLOAD_MAX
        self.input_window = 0
        self._guard = guard
        self._on_trouble = on_trouble
        self._ids = itertools.count(1)
        self._changes = Changes()
        self._receivers: dict[int, Receiver] = {}
        self._lost: ChannelLost | None = ChannelLost(f"{name}: no hello yet")
        self._decoder: Decoder | None = None
        self._welcomed = False
        self._ended: ChannelLost | None = None
        self._closed = False
        self._queue: deque[bytes | tuple[int, int, bytes, int]] = deque()
        self._seq = 1
        self._flushing = False
        # Of the reactor's thread alone.
        self._transport: asyncio.WriteTransport
        self._paused = False
        self._idle = asyncio.Event()
        self._gone = asyncio.Event()
        reactor().run(self._attach(stream), _LOOP * scale(), f"the channel to {name} to open")
        self._unwatch = guard.on_trouble(self.wake) if guard else lambda: None

    def hello(self, timeout: float) -> None:
        """Introduce ourselves to the agent, whatever lies in the pipe; ends older commands.

        Raises GuestError (no answer), RigError (another version), ChannelLost, what the guard
        raises.
        """
        deadline = Deadline("the guest agent to answer", timeout)
        self._lose(ChannelLost(f"{self.name}: a new hello was sent"), quiet=True)
        decoder = Decoder(nonce := secrets.token_bytes(frames.NONCE_SIZE))
        greeting = frames.hello(nonce, frames.PAYLOAD_MAX, WINDOW)
        with self._changes:
            self._decoder = decoder
            self._welcomed = False
            self._queue.clear()
            self._seq = 1
        pauses = itertools.chain(_HELLO_PAUSES, itertools.repeat(_HELLO_PAUSES[-1]))
        padding = b""
        while not self._welcomed:
            with self._changes:
                if not self._queue:  # else nobody has read the last one yet
                    self._enqueue(padding + greeting)
            # From the second on: half a frame of an earlier peer would swallow a bare hello.
            padding = frames.PADDING
            self._await_welcome(next(pauses), deadline)
        assert decoder.welcome is not None
        if decoder.welcome.version != frames.VERSION:
            raise RigError(
                f"{self.name}: the guest agent has version {decoder.welcome.version} "
                f"of the protocol, emu has {frames.VERSION}",
                hint="build the guest images again: emu images",
            )

    def add(self, make: Callable[[int], R]) -> R:
        """Make a receiver for a fresh id. Raises what `check` raises."""
        self.check()
        id_ = next(self._ids)
        receiver = make(id_)
        with self._changes:
            if self._lost is not None:
                raise self._lost
            self._receivers[id_] = receiver
        return receiver

    def forget(self, id: int) -> None:
        """Nothing more is for `id`."""
        with self._changes:
            self._receivers.pop(id, None)

    def send(self, type: int, id: int, payload: bytes = b"", stream: int = 0) -> None:
        """Queue a frame; on a lost channel it goes nowhere."""
        with self._changes:
            if self._lost is None:
                self._enqueue((type, id, payload, stream))

    def check(self, deadline: Deadline | None = None) -> None:
        """Raise what the guard raises, or ChannelLost when there is no channel."""
        if self._guard is not None:
            self._guard.check(deadline)
        if self._lost is not None:
            raise self._lost

    def wake(self) -> None:
        """Let every wait ask the guard."""
        with self._changes:
            receivers = list(self._receivers.values())
        for receiver in receivers:
            receiver.wake()
        self._changes.notify()

    def close(self) -> None:
        """Send a BYE and close the stream; twice is fine."""
        if self._closed:
            return
        self._unwatch()
        self.send(ToGuest.BYE, 0)
        self._closed = True
        self._lose(ChannelLost(f"{self.name}: the channel was closed"), quiet=True)
        reactor().run(self._shut(), _LOOP * scale(), f"the channel to {self.name} to close")

    def _await_welcome(self, seconds: float, deadline: Deadline) -> None:
        again = time.monotonic() + min(seconds, deadline.left)

        def check() -> None:
            if self._guard is not None:
                self._guard.check(deadline)

        over = self._changes.wait(
            lambda: self._welcomed or self._ended or self._closed,
            lambda: again - time.monotonic(),
            check,
        )
        if self._closed:
            raise ChannelLost(f"{self.name}: the channel was closed")
        if self._ended is not None:
            self._lose(self._ended, quiet=True)
            raise self._ended
        if not over and deadline.passed:
            raise GuestError(
                f"{self.name}: no guest agent answered within {deadline.seconds:g} s",
                hint="see the guest's console: did emu-agent start?",
            )

    def _lose(self, error: ChannelLost, quiet: bool = False) -> None:
        """No answer can come any more: end all waits."""
        with self._changes:
            worked, self._lost = self._lost is None, error
            receivers = list(self._receivers.values())
            self._receivers.clear()
        self._changes.notify()
        for receiver in receivers:
            receiver.lose(error)
        if worked and not quiet and self._on_trouble is not None:
            self._on_trouble(error)

    def _enqueue(self, item: bytes | tuple[int, int, bytes, int]) -> None:
        """Queue what is to be written; with the lock."""
        self._queue.append(item)
        if not self._flushing:
            self._flushing = True
            reactor().soon(self._flush)

    # What follows runs in the reactor's thread.

    async def _attach(self, stream: socket.socket | Stream) -> None:
        self._transport = await attach(stream, self)

    async def _shut(self) -> None:
        try:
            self._flush()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _CLOSE_GRACE)
        finally:
            self._transport.abort()
        await self._gone.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The stream is a socket; `pause_writing` is called as soon as it takes no more."""
        assert isinstance(transport, asyncio.WriteTransport)
        transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        """The stream takes no more."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream has ended: all waits end."""
        self._gone.set()
        self._idle.set()
        if not self._closed:
            why = exc or "its stream ended"
            self._ended = ChannelLost(f"{self.name}: the channel is gone: {why}")
            self._lose(self._ended)

    def data_received(self, data: bytes) -> None:
        """Bytes from the agent."""
        decoder = self._decoder
        if decoder is None:
            return  # damaged, and no new hello yet
        try:
            joined = decoder.welcome is not None
            received = decoder.feed(data)
            if not joined and decoder.welcome is not None:
                self._join(decoder, decoder.welcome)
            for frame in received:
                self._dispatch(frame)
        except frames.Damaged as error:
            with self._changes:
                if self._decoder is decoder:
                    self._decoder = None
            self._lose(
                ChannelLost(f"{self.name}: what the guest sent came damaged: {error}", hint=_AGAIN)
            )

    def _join(self, decoder: Decoder, welcome: frames.Welcome) -> None:
        self.chunk = min(welcome.chunk, frames.PAYLOAD_MAX)
        self.input_window = welcome.window
        with self._changes:
            if self._decoder is decoder and not self._closed:
                self._lost = None
                self._welcomed = True
        self._changes.notify()

    def _dispatch(self, frame: Frame) -> None:
        if frame.type == ToHost.TROUBLE:
            why = frame.payload.decode("utf-8", "replace")
            self._lose(
                ChannelLost(f"{self.name}: what the guest got came damaged: {why}", hint=_AGAIN)
            )
            return
        with self._changes:
            receiver = self._receivers.get(frame.id)
        if receiver is not None:
            receiver.take(frame)

    def _flush(self) -> None:
        """Write what waits in the queue until the stream takes no more."""
        while not self._paused and not self._gone.is_set():
            with self._changes:
                batch = self._next_batch()
                if not batch:
                    self._flushing = False
                    break
            self._idle.clear()
            self._transport.write(batch)
        if not self._paused:
            self._idle.set()

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
