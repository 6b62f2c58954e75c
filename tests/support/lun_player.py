"""The LUN server with a player for tcmu-runner, in a process of its own: tests without Xen."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import sanitized

from emu import paths
from emu.channel.result import CommandResult
from emu.images import handler, xens
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.xen.lun import Lun
from emu.xen.lunserver import LunServer

OPERATIONS = {"read": 1, "write": 2, "flush": 3, "unmap": 4, "write-same": 5}
GOOD, HARDWARE_ERROR, UNANSWERED = 0, 13, -1
"""Of tcmu-runner's status codes (libtcmu_common.h), and the player's own."""


class Local:
    """Stands in for a Channel to dom0: runs the very same emu-lun here."""

    def __init__(self, program: Path, socket: Path) -> None:
        self.program = program
        self._environment = sanitized.environment(EMU_LUN_SOCKET=str(socket))

    def run(self, argv: list[str], *, timeout: float, check: bool) -> CommandResult:
        assert argv[0] == "emu-lun"
        done = subprocess.run(
            [self.program, *argv[1:]], capture_output=True, timeout=timeout, env=self._environment
        )
        assert done.returncode != sanitized.FAULT, done.stderr.decode()
        return CommandResult(tuple(argv), done.returncode, None, done.stdout, done.stderr, 0.0)


class Command:
    """A request that was sent to the server."""

    def __init__(self, player: Player, number: int) -> None:
        self._player, self._number = player, number
        self.data = b""
        """What was read; empty before `status` has returned GOOD."""

    def status(self, timeout: float = 5.0) -> int:
        """The status of the server's answer; UNANSWERED if there is none in time."""
        status, data = self._player.ask(f"wait {self._number} {int(timeout * 1000)}")
        assert status != -2, "answered twice"
        self.data = data or self.data
        return status


class Device:
    """One LUN, on a file of its own."""

    def __init__(self, player: Player, number: int, file: Path, sector: int) -> None:
        self.player, self.number, self.file, self.sector = player, number, file, sector
        blocks = file.stat().st_size // sector
        assert player.open_device(number, file, sector, blocks), player.logged()
        self.server = LunServer(
            Lun(file.stem, file.stat().st_size, sector, "/dev/null"),
            player.dom0,  # type: ignore[arg-type]
        )

    def submit(
        self,
        operation: str,
        lba: int = 0,
        data: bytes = b"",
        blocks: int = 0,
        fua: bool = False,
        times: int = 1,
    ) -> Command:
        """Send a request; `data` is what is written, or as long as what is read.

        `times` requests, each after the answer to the one before; the last is returned.
        """
        blocks = blocks or len(data) // self.sector
        words = (self.number, OPERATIONS[operation], lba, blocks, len(data), int(fua), times)
        number, _ = self.player.ask(f"submit {' '.join(map(str, words))}", data)
        assert number >= 0, "the server did not take the request"
        return Command(self.player, number)

    def write(self, lba: int, data: bytes) -> int:
        """Write and wait for the status."""
        return self.submit("write", lba, data).status()

    def block(self) -> None:
        """The kernel sends nothing more: tcmu-runner is about to end."""
        self.player.ask(f"block {self.number}")

    def remove(self) -> None:
        """The first half of `close`: the server's control socket forgets the LUN."""
        self.player.ask(f"remove {self.number}")

    def close(self) -> None:
        """As tcmu-runner does at its end."""
        self.player.ask(f"close {self.number}")


class Player(contextlib.AbstractContextManager["Player"]):
    """A process with the server. Leaving it asserts that no sanitizer has found a fault."""

    def __init__(
        self, folder: Path, sanitizer: sanitized.Sanitizer, socket: Path | None = None
    ) -> None:
        self.dom0 = Local(sanitized.program("emu-lun"), socket or folder / "lun.sock")
        self._log = (folder / "player.log").open("w+")
        self._process = subprocess.Popen(
            sanitized.command(_program(sanitizer), sanitizer),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self.dom0._environment,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.init = int(self._line())
        """What handler_init() returned: 0 or -errno."""

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            status = self._process.wait(30)
        finally:
            self._process.kill()
            self._process.stdout.close()
            with self._log:
                self._log.seek(0)
                report = self._log.read()
        assert status == 0, report

    def open(self, file: Path, sector: int = 512) -> Device:
        """Serve a file."""
        return Device(self, next(self._numbers), file, sector)

    def open_device(self, number: int, file: Path, sector: int, blocks: int) -> bool:
        """Whether the server opened a device of that number on a file."""
        return bool(self.ask(f"open {number} {sector} {blocks} ledger/{file}")[0])

    def logged(self) -> str:
        """The last error or warning that the server logged."""
        return self.ask("logged")[1].decode()

    def ask(self, line: str, data: bytes = b"") -> tuple[int, bytes]:
        """Send a line and what belongs to it; the number of the answer, and its data."""
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(f"{line}\n".encode() + data)
            self._process.stdin.flush()
            number, *size = self._line().split()
            return int(number), self._process.stdout.read(int(size[0])) if size else b""

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(10)
            self._log.seek(0)
            raise AssertionError(f"the player ended:\n{self._log.read()}")
        return line.decode()


def _program(sanitizer: sanitized.Sanitizer) -> Path:
    folder = paths.guest_images() / "handler"
    sources = [
        Path(__file__).with_name("handler_player.c"),
        *sorted(folder.glob("*.c")),
        paths.guest_images() / "common/crc32.c",
    ]
    return sanitized.build("handler-player", folder, sources, sanitizer, _headers)


def _headers(scratch: Path) -> Sequence[str]:
    handler.unpack(scratch, xens.find(xens.DEFAULT), BuildContext(Cache()))
    source = scratch / "tcmu-runner"
    return ["-isystem", str(source), "-isystem", str(source / "ccan")]
