"""Streams for a channel: one that damages what passes through, and one over a terminal."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from emu.channel.stream import Pipe, attach

Change = Callable[[bytes], bytes]


class Faulty(asyncio.Protocol, asyncio.Transport):
    """A socket whose bytes pass through `on_send` and `on_recv`."""

    def __init__(self, inner: socket.socket) -> None:
        self.on_send: Change = lambda data: data
        self.on_recv: Change = lambda data: data
        self._inner = inner
        self._protocol: asyncio.Protocol
        self._transport: asyncio.WriteTransport

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.WriteTransport:
        self._protocol = protocol
        self._transport = await attach(self._inner, self)
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(self.on_recv(data))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def write(self, data: Any) -> None:
        self._transport.write(self.on_send(data))

    def abort(self) -> None:
        self._transport.abort()


class Terminal:
    """The master of a pseudo terminal, not blocking; the test's to close."""

    failure = None

    def __init__(self, master: int) -> None:
        self.over = False
        self._master = master
        self._pipe: Pipe

    async def attach(self, protocol: asyncio.Protocol) -> Pipe:
        self._pipe = Pipe(self, protocol)
        protocol.connection_made(self._pipe)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self._pipe

    def offer(self, data: bytes) -> int:
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._master)
        try:
            return 0 if self.over else os.write(self._master, data)
        except BlockingIOError:
            loop.add_writer(self._master, self._pipe.changed)
            return 0

    def close(self) -> None:
        self.over = True
        asyncio.get_running_loop().remove_reader(self._master)
        asyncio.get_running_loop().remove_writer(self._master)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # nobody has the terminal open
            data = b""
        if data:
            self._pipe.received(data)
        else:
            self.close()
            self._pipe.changed()
