"""A real `emu` in its own process, on its own cache, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.deadline import Deadline, poll
from emu.images import manifest
from emu.images.cache import Cache
from emu.machine.rundir import sweep

TAG = "EMU_TEST_TAG"
_MARK = f"{TAG}=".encode()
LOOSE = ("locks", "runs", "store", "tmp")
GONE_WITHIN = 10.0
"""Seconds after the end of a command in which all that it started has to end."""


def run_emu(*words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """The command, to its end, on the cache that everything shares; `timeout` in seconds."""
    command = [sys.executable, "-m", "emu.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


class EmuCommand:
    """A running `emu`. What it starts is found by a tag in the environment."""

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        logs: Path,
        *,
        checkout: Path | None = None,
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.tag = secrets.token_hex(8)
        self._known: dict[int, _Process] = {}
        self.home = home
        self._out = logs / f"{self.tag}.out"
        self._err = logs / f"{self.tag}.err"
        # A background job of a shell inherits SIGINT ignored; a command in a terminal does not.
        own_signals = ("env", "--default-signal=INT")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*own_signals, *wrapper, sys.executable, "-m", "emu.cli", *arguments],
                cwd=checkout or paths.checkout(),
                env={**os.environ, "XDG_CACHE_HOME": str(home), TAG: self.tag, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    def wait_until(self, there: Callable[[], object], what: str, timeout: float = 120.0) -> None:
        """Wait for something that the running command does."""
        until = Deadline(what, timeout)
        while not there():
            assert self.process.poll() is None, f"ended before {what}:\n{self.stderr}"
            assert not until.passed, f"waited {until.spent:.0f} s for {what}:\n{self.stderr}"
            time.sleep(0.02)

    def wait_said(self, text: str, timeout: float = 120.0) -> None:
        """Wait until the command has printed `text` to standard error."""
        self.wait_until(lambda: text in self.stderr, repr(text), timeout)

    def wait(self, timeout: float) -> int:
        """Wait for the end; the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"emu did not end within {timeout} s:\n{self.stderr}") from None

    def succeed(self, timeout: float = 150.0) -> EmuCommand:
        """Wait for the end, which must be a success."""
        status = self.wait(timeout)
        assert status == 0, f"status {status}\n{self.stdout}\n{self.stderr}"
        return self

    def fail(self, status: int, timeout: float = 60.0) -> str:
        """Wait for the end, which must be a failure with this status; the error it printed."""
        ended = self.wait(timeout)
        errors = self.stderr
        assert ended == status, f"status {ended}, not {status}\n{self.stdout}\n{errors}"
        assert "Traceback" not in errors, errors
        return errors[errors.rindex("\nemu: ") + 1 :] if "\nemu: " in errors else errors

    def interrupt(self, number: signal.Signals) -> None:
        """Send a signal: SIGINT to the whole group, as Ctrl-C does, others to the command alone."""
        self.family()  # who is an orphan afterwards is known by then
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def family(self) -> dict[int, str]:
        """All descendants: pid → command line.

        A build's environment has no tag; those are found by their parents, as long as these
        live, and after that by their session.
        """
        now = _processes()
        same = (pid for pid, one in self._known.items() if pid in now and now[pid].born == one.born)
        ours = {self.process.pid, *same, *(pid for pid, one in now.items() if one.tag == self.tag)}
        size = 0
        while size < len(ours):
            size = len(ours)
            # A session outlives the process that began it.
            ours |= {
                pid
                for pid, one in now.items()
                if {one.parent, one.session} & ours or one.session in self._known
            }
        self._known |= {pid: now[pid] for pid in ours if pid in now}
        return {pid: now[pid].line for pid in ours if pid in now}

    def qemus(self) -> list[int]:
        """The QEMUs among them."""
        return [
            pid
            for pid, line in self.family().items()
            if Path(line.partition(" ")[0]).name.startswith("qemu-system")
        ]

    def assert_nothing_runs(self) -> None:
        """Everything that the command started ends within seconds."""
        left = poll(self.family, Deadline("the end of all", GONE_WITHIN), until=lambda now: not now)
        assert not left, f"left running: {left}"

    def end(self) -> None:
        """Kill what is left of it."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


class Warm:
    """Makes caches that link to the entries of `source`: nothing is copied or hashed anew.

    An entry is a symbolic link, so that a command which discards one removes only the link.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.commands: list[EmuCommand] = []
        self._homes = 0

    def home(self, name: str = "", *, without: Sequence[str] = ()) -> Path:
        """An XDG_CACHE_HOME with all kinds of entries but those, and with the packages."""
        self._homes += 1
        home = self.folder / (name or f"home-{self._homes}")
        home.mkdir(parents=True)
        fill(self.source, home / "emu-xen-block", without)
        return home

    def emu(self, home: Path, *arguments: str, **more: object) -> EmuCommand:
        """Start `emu` with arguments on such a cache; see `EmuCommand` for `more`."""
        command = EmuCommand(arguments, home, self.folder, **more)  # type: ignore[arg-type]
        self.commands.append(command)
        return command

    def run(self, home: Path, *arguments: str, **more: object) -> EmuCommand:
        """Start `emu run` with little data."""
        return self.emu(home, "run", "--data", "1", *arguments, **more)


def fill(source: Path, root: Path, without: Sequence[str]) -> None:
    """Link all entries of the cache `source`, and its packages, into a new cache `root`."""
    root.mkdir(mode=0o700)
    for kind in source.iterdir():
        if kind.name in LOOSE or kind.name in without or not kind.is_dir():
            continue
        (root / kind.name).mkdir()
        for entry in kind.iterdir():
            if entry.suffix == ".stat":
                shutil.copy2(entry, root / kind.name)
            else:
                (root / kind.name / entry.name).symlink_to(entry)
    if "store" not in without:
        (root / "store").mkdir()
        (root / "store/debs").symlink_to(source / "store/debs")
        if (source / "store/replaced").exists():  # else the keys would be those of the lock
            shutil.copytree(source / "store/replaced", root / "store/replaced")


def own_copy(entry: Path) -> Path:
    """Replace a linked entry by a copy that a test may change."""
    real = entry.resolve()
    entry.unlink()
    command = ["cp", "-a", "--sparse=always", "--reflink=auto", str(real), str(entry)]
    subprocess.run(command, check=True)
    entry.with_name(f"{entry.name}.stat").write_text("{}")
    return entry


def assert_clean(home: Path) -> None:
    """After the next command has opened the cache: no leftovers, no socket, only whole entries."""
    root = home / "emu-xen-block"
    Cache(root)
    sweep(root / "runs")
    assert not list((root / "tmp").iterdir())
    assert not list((root / "runs").glob("*/state")), "a run left its state"
    assert not [path for path in home.rglob("*") if path.is_socket()]
    for entry in root.glob("*/" + "[0-9a-f]" * 32):
        if entry.is_dir() and not entry.is_symlink():
            _assert_whole(entry)


def _assert_whole(entry: Path) -> None:
    inputs = json.loads((entry / manifest.NAME).read_text())["inputs"]
    assert manifest.fault(entry, entry.parent.name, inputs) is None, entry


@dataclass(frozen=True)
class _Process:
    """A process. `born` distinguishes it from a later one with the same id."""

    parent: int
    session: int
    born: int
    tag: str
    line: str


def _processes() -> dict[int, _Process]:
    """All processes that are no zombies, by id (proc(5): /proc/pid/stat)."""
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes().split(b"\0")
            tags = [word[len(TAG) + 1 :].decode() for word in environ if word.startswith(_MARK)]
            if fields[0] != "Z":
                found[int(path.name)] = _Process(
                    parent=int(fields[1]),
                    session=int(fields[3]),
                    born=int(fields[19]),
                    tag=tags[0] if tags else "",
                    line=b" ".join(words).decode("utf-8", "replace").strip(),
                )
    return found
