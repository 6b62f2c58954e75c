"""The LUN server in this process, with a player for tcmu-runner: for tests without Xen."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from pathlib import Path

from emu.channel.result import CommandResult
from emu.images import agent, handler
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.xen.lun import Lun
from emu.xen.lunserver import LunServer

OPERATIONS = {"read": 1, "write": 2, "flush": 3, "unmap": 4, "write-same": 5}
GOOD, HARDWARE_ERROR, UNANSWERED = 0, 13, -1
"""Of tcmu-runner's status codes (libtcmu_common.h), and the player's own."""


class Local:
    """Where a Channel to dom0 is wanted: runs the very same emu-lun here."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, argv: list[str], *, timeout: float, check: bool) -> CommandResult:
        assert argv[0] == "emu-lun"
        done = subprocess.run([self.program, *argv[1:]], capture_output=True, timeout=timeout)
        return CommandResult(tuple(argv), done.returncode, None, done.stdout, done.stderr, 0.0)


class Command:
    """A request that was handed to the server."""

    def __init__(self, player: Player, pointer: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        self._player, self._pointer, self.buffer = player, pointer, buffer

    def status(self, timeout: float = 5.0) -> int:
        """What it was answered with; UNANSWERED if not in time."""
        status = self._player.library.player_wait(self._pointer, int(timeout * 1000))
        assert status != -2, "answered twice"
        return int(status)


class Device:
    """One LUN, on a file of its own."""

    def __init__(self, player: Player, number: int, file: Path, sector: int) -> None:
        self.player, self.number, self.file, self.sector = player, number, file, sector
        blocks = file.stat().st_size // sector
        self.pointer = player.library.player_open(number, f"ledger/{file}".encode(), sector, blocks)
        self.server = LunServer(
            Lun(file.stem, file.stat().st_size, sector, "/dev/null"),
            Local(player.program),  # type: ignore[arg-type]
        )

    def submit(
        self, operation: str, lba: int = 0, data: bytes = b"", blocks: int = 0, fua: bool = False
    ) -> Command:
        """Hand a request over; `data` is what is written, or as long as what is read."""
        buffer = ctypes.create_string_buffer(data, len(data))
        pointer = self.player.library.player_submit(
            self.pointer, OPERATIONS[operation], lba, blocks or len(data) // self.sector,
            buffer, len(data), fua,
        )  # fmt: skip
        assert pointer, "the server did not take the request"
        return Command(self.player, pointer, buffer)

    def write(self, lba: int, data: bytes) -> int:
        """Write and wait for the status."""
        return self.submit("write", lba, data).status()

    def block(self) -> None:
        """The kernel sends nothing more: tcmu-runner is about to end."""
        self.player.library.player_block(self.pointer)

    def close(self) -> None:
        """As tcmu-runner does at its end."""
        self.player.library.player_close(self.number)


class Player:
    """The process's one server, loaded."""

    def __init__(self, folder: Path) -> None:
        cache = Cache()
        self.handler = handler.build(BuildContext(cache))
        self.program = agent.build(BuildContext(cache)).lun
        handler.unpack(folder, BuildContext(cache))
        library = folder / "player.so"
        here = Path(__file__).with_name("handler_player.c")
        source = folder / "tcmu-runner"
        include = ["-isystem", str(source), "-isystem", str(source / "ccan")]
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
        command = [agent.CC, *flags, *include, "-o", str(library), str(here)]
        subprocess.run(command, check=True)
        os.environ["EMU_LUN_SOCKET"] = str(folder / "lun.sock")
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        for name in ("player_open", "player_submit"):
            getattr(self.library, name).restype = ctypes.c_void_p
        self.library.player_load.restype = self.library.player_said.restype = ctypes.c_char_p
        pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        self.library.player_open.argtypes = [ctypes.c_int, ctypes.c_char_p, u32, u64]
        self.library.player_submit.argtypes = [
            pointer, ctypes.c_int, u64, u32, pointer, u32, ctypes.c_int,
        ]  # fmt: skip
        self.library.player_wait.argtypes = [pointer, ctypes.c_int]
        self.library.player_block.argtypes = [pointer]
        refused = self.library.player_load(str(self.handler).encode())
        assert refused is None, refused
        self._numbers = itertools.count()

    def open(self, file: Path, sector: int = 512) -> Device:
        """Serve a file."""
        return Device(self, next(self._numbers), file, sector)

    def said(self) -> str:
        """The last error or warning that the server logged."""
        return str(self.library.player_said().decode())
