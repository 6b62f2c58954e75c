"""QMP: one connection to QEMU's monitor over an inherited socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from emu.deadline import scale
from emu.errors import RigError
from emu.reactor import reactor

Event = dict[str, Any]

# It logs every lost connection as an error; here a machine ends that way.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Refused(RigError):
    """QEMU answered a command with an error of QMP's class `error_class`."""

    def __init__(self, command: str, error: ExecuteError) -> None:
        super().__init__(f"QEMU refused {command}: {error}")
        self.error_class = error.error_class


class Monitor:
    """Commands to QEMU, and its events: `on_event` is called in the reactor's thread."""

    def __init__(self, sock: socket.socket, on_event: Callable[[Event], None]) -> None:
        self._sock = sock
        self._on_event = on_event
        self._client = QMPClient("emu")
        self._events: asyncio.Task[None] | None = None

    def connect(self, timeout: float) -> None:
        """Take QEMU's greeting. Raises QMPError, EOFError, RigError (no answer)."""
        self._sock.setblocking(False)
        reactor().run(self._connect(), timeout * scale(), "QEMU's monitor to answer")

    async def _connect(self) -> None:
        await self._client.connect(self._sock)
        self._events = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        async for event in self._client.events:
            self._on_event(dict(event))

    def execute(
        self, command: str, arguments: dict[str, Any], timeout: float, fd: int | None = None
    ) -> Any:
        """Run a command, `timeout` seconds (before scaling) at most; its return value.

        `fd` is sent along (for `getfd`). Raises Refused, or RigError when QEMU is gone.
        """
        try:
            return reactor().run(
                self._execute(command, arguments, fd), timeout * scale(), f"QEMU to {command}"
            )
        except ExecuteError as error:
            raise Refused(command, error) from None
        except (QMPError, EOFError, OSError) as error:
            raise RigError(f"QEMU's monitor was lost during {command}") from error

    async def _execute(self, command: str, arguments: dict[str, Any], fd: int | None) -> Any:
        if fd is not None:
            self._client.send_fd_scm(fd)
        return await self._client.execute(command, arguments or None)

    async def drained(self) -> None:
        """Wait, a second at most, for the last event of a QEMU that has ended."""
        end = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < end:
            if self._client.runstate is not Runstate.RUNNING and not self._waiting_events():
                return
            await asyncio.sleep(0.005)

    def _waiting_events(self) -> bool:
        following = self._events is not None and not self._events.done()
        return following and not self._client.events.empty()

    def close(self) -> None:
        """End the connection."""
        reactor().run(self._close(), 5, "QEMU's monitor to close")

    async def _close(self) -> None:
        if self._events:
            self._events.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._events
        with contextlib.suppress(QMPError, EOFError, OSError, asyncio.CancelledError):
            await self._client.disconnect()
        self._sock.close()
