"""What a channel lies on: a byte stream that the event loop reads and writes.

The two ends speak as asyncio's do: the stream calls `data_received`, `pause_writing`,
`resume_writing` and `connection_lost` of an `asyncio.Protocol`, in the reactor's thread, and
takes bytes by `asyncio.WriteTransport.write`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol

from emu.errors import EmuError
from emu.reactor import reactor


class Stream(Protocol):
    """A byte stream other than a socket; a `Process` is one."""

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.WriteTransport:
        """Call `protocol` from now on, `connection_made` first; returns what sends and closes."""


async def attach(
    stream: socket.socket | Stream, protocol: asyncio.Protocol
) -> asyncio.WriteTransport:
    """`Stream.attach`, for a connected stream socket as well."""
    if not isinstance(stream, socket.socket):
        return await stream.attach(protocol)
    loop = asyncio.get_running_loop()
    transport: asyncio.WriteTransport
    transport, _ = await loop.create_connection(lambda: protocol, sock=stream)
    return transport


class Piped(Protocol):
    """What a `Pipe` asks of the command that it writes to and reads from."""

    def offer(self, data: bytes) -> int:
        """Hand over what standard input takes at once; how many bytes that was."""

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""

    @property
    def failure(self) -> EmuError | None:
        """Why it is over, unless it ended well."""

    def close(self) -> None: ...


class Pipe(asyncio.Transport):
    """Standard input and output of a command as a stream. All in the reactor's thread."""

    def __init__(self, piped: Piped, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._piped = piped
        self._protocol = protocol
        self._buffer = bytearray()
        self._paused = False
        self._lost = False

    def received(self, data: bytes) -> None:
        """Bytes from standard output."""
        if not self._lost:
            self._protocol.data_received(data)

    def changed(self) -> None:
        """The command takes input again, or is over. From any thread."""
        reactor().soon(self._look)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Not used: it reports at once that something has to wait."""

    def write(self, data: Any) -> None:
        """Send bytes; `pause_writing` is called as long as some have to wait."""
        self._buffer += data
        self._push()

    def close(self) -> None:
        """As `abort`: a writer waits for `resume_writing` first."""
        self.abort()

    def abort(self) -> None:
        """End the command; what it did not take is dropped."""
        self._buffer.clear()
        self._piped.close()
        reactor().soon(lambda: self._end(None))

    def _look(self) -> None:
        self._push()
        if self._piped.over:
            self._end(self._piped.failure)

    def _push(self) -> None:
        while self._buffer and (taken := self._piped.offer(bytes(self._buffer))):
            del self._buffer[:taken]
        if bool(self._buffer) != self._paused and not self._lost:
            self._paused = not self._paused
            report: Callable[[], None] = (
                self._protocol.pause_writing if self._paused else self._protocol.resume_writing
            )
            report()

    def _end(self, error: EmuError | None) -> None:
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(error)
