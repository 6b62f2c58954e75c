"""A run's directory: its logs and what QEMU writes, private to the user, gone when stale.

    runs/20150522-140312-7f3a/      mode 0700
        lock                        an flock, held while the run's owner lives; its record
        console.log xen.log …       kept for the last few runs
        state/                      everything else; removed with the run

A directory whose lock is free has no owner: it has ended, or was killed. The record
(emu.machine.runrecord) tells which.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from emu import paths
from emu.errors import RigError
from emu.machine import runrecord
from emu.machine.runrecord import Outcome, RunRecord

KEEP_LOGS = 5
"""How many runs that held keep their logs."""
KEEP_FAILED = 20
"""How many of those do that failed, were interrupted or killed: somebody will look at them."""
_LOCK = "lock"
_FAILED = "failed.log"
_NEW = ".new-"
_LOG_SUFFIXES = (".log", ".1")
_RECORDED = (".recording", ".json")
"""Files for a replay (emu.stack.recording): kept as long as the logs."""


@contextlib.contextmanager
def disk_errors(path: Path, wanted: str) -> Iterator[None]:
    """Turn "no space left" inside the block into a RigError that names path and free space."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full(path, wanted) from error


def disk_full(path: Path, wanted: str) -> RigError:
    """The error for a full disk: what was wanted, where, and the free space."""
    try:
        left = f"{shutil.disk_usage(_existing(path)).free / 2**20:.0f} MiB left"
    except OSError:
        left = "no room left"
    return RigError(
        f"no room for {wanted} in {path} ({left})",
        hint="make room there, or point XDG_CACHE_HOME at another disk; `emu cache prune` helps",
    )


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


class RunDir:
    """One run's directory, locked for as long as this object is open.

    `path` holds logs, `state` what must not outlive the run.
    """

    def __init__(self, path: Path, lock: int, root: Path) -> None:
        self.path = path
        self.state = path / "state"
        self._lock = lock
        self._root = root

    @classmethod
    def create(cls, root: Path | None = None) -> RunDir:
        """Make a new directory below `root` (default: `paths.runs_root()`), after a sweep.

        Raises RigError when the disk is full or not writable.
        """
        root = root or paths.runs_root()
        with disk_errors(root, "a run's directory"):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep(root)
            while True:
                name = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
                # Locked before it is renamed, so that no sweep finds it unlocked.
                hidden = root / f"{_NEW}{name}"
                hidden.mkdir(mode=0o700)
                lock = _take_if_free(hidden)
                if lock is None:
                    continue  # the sweep of another process came between the two lines
                try:
                    runrecord.begin(lock)
                    (hidden / "state").mkdir(mode=0o700)
                    hidden.rename(root / name)
                except OSError as error:
                    os.close(lock)
                    shutil.rmtree(hidden, ignore_errors=True)
                    if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                        continue
                    raise
                return cls(root / name, lock, root)

    def log(self, name: str) -> Path:
        """The path of the log called `name` (`xen` → `<run>/xen.log`)."""
        return self.path / f"{name}.log"

    def keep(self, why: str) -> None:
        """Let the logs of this run, which failed, outlive those of runs that held."""
        (self.path / _FAILED).write_text(f"{why}\n")

    def close(self, error: BaseException | None = None) -> None:
        """Release the directory: the state goes, the logs stay until newer runs displace them.

        `error` is what ended the run; with one its logs are kept as by `keep`.
        """
        if self._lock < 0:
            return
        # A full disk must not hide the error: without its end the record counts as killed.
        with contextlib.suppress(OSError):
            if error is not None and not (self.path / _FAILED).exists():
                self.keep(_first_line(error))
            runrecord.end(self._lock, *self._outcome(error))
        shutil.rmtree(self.state, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1
        sweep(self._root)

    def _outcome(self, error: BaseException | None) -> tuple[Outcome, str]:
        try:
            why = (self.path / _FAILED).read_text().strip()
        except OSError:
            why = ""
        return "failed" if why and error is None else runrecord.outcome_of(error), why

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)


def records(root: Path | None = None) -> list[RunRecord]:
    """The runs that have a directory, the last first."""
    found = []
    for path in _directories(root or paths.runs_root()):
        with contextlib.suppress(OSError):  # a sweep was faster, or another user's
            if not path.name.startswith(_NEW):
                found.append(runrecord.read(path, _LOCK))
    return sorted(found, key=lambda record: record.began, reverse=True)


def sweep(
    root: Path | None = None, keep: int = KEEP_LOGS, keep_failed: int = KEEP_FAILED
) -> list[Path]:
    """Remove the state of runs that have ended; the newest `keep` of them keep their logs.

    Those that failed (`RunDir.keep`) or were killed are counted separately, up to `keep_failed`.
    Returns the directories that were removed. Running ones are left alone.
    """
    root = root or paths.runs_root()
    removed: list[Path] = []
    left = {False: keep, True: keep_failed}
    for path in sorted(_directories(root), key=_age_order, reverse=True):
        lock = _take_if_free(path)
        if lock is None:
            continue
        try:
            failed = (path / _FAILED).exists() or runrecord.was_killed(lock)
            if left[failed] > 0 and not path.name.startswith(_NEW) and _strip(path):
                left[failed] -= 1
            else:
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
        finally:
            os.close(lock)
    return removed


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def _age_order(path: Path) -> str:
    return path.name.removeprefix(_NEW)


def _directories(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []


def _take_if_free(path: Path) -> int | None:
    """A descriptor that holds the directory's lock, or None while another process does."""
    try:
        # Created when missing: the owner was killed between mkdir and lock.
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _strip(path: Path) -> bool:
    """Remove everything but the logs; whether there is a log."""
    logs = False
    for item in path.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        elif item.suffix in _LOG_SUFFIXES:
            logs = True
        elif item.name != _LOCK and item.suffix not in _RECORDED:
            item.unlink(missing_ok=True)
    return logs
