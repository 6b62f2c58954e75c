"""A stream socket to QEMU, which the reactor reads and writes without blocking."""

from __future__ import annotations

import socket
from collections.abc import Callable

from emu.errors import GuestError
from emu.reactor import reactor

_CHUNK = 65536
_OUTGOING_LIMIT = 2**20


class Link:
    """A connected socket: `received` is called with every chunk, in the reactor's thread.

    `send` may be called from any thread.
    """

    def __init__(self, sock: socket.socket, received: Callable[[bytes], None]) -> None:
        self._sock = sock
        self._received = received
        self._outgoing = bytearray()
        self._open = True
        sock.setblocking(False)
        reactor().call(lambda: reactor().loop.add_reader(sock, self._read))

    def send(self, data: bytes) -> None:
        """Queue bytes for the other end. Raises GuestError when it has taken none for long."""
        if len(self._outgoing) + len(data) > _OUTGOING_LIMIT:
            raise GuestError("the guest reads nothing from its console; 1 MiB typed ahead")

        def add() -> None:
            if self._open:
                self._outgoing += data
                self._write()

        reactor().soon(add)

    def close(self) -> None:
        """Read what is left, and close. In the reactor's thread; twice is fine."""
        while self._open and self._read():
            pass
        self._end()

    def _read(self) -> bool:
        try:
            data = self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        self._received(data)
        return True

    def _write(self) -> None:
        loop = reactor().loop
        try:
            while self._outgoing:
                sent = self._sock.send(self._outgoing)
                del self._outgoing[:sent]
        except (BlockingIOError, InterruptedError):
            loop.add_writer(self._sock, self._write)
            return
        except OSError:
            self._outgoing.clear()
        loop.remove_writer(self._sock)

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        reactor().loop.remove_reader(self._sock)
        reactor().loop.remove_writer(self._sock)
        self._sock.close()
