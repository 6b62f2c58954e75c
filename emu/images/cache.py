"""A cache of built things: found by what went in, trusted only as far as it verifies.

An entry is a directory `<root>/<kind>/<key>/` that appears whole or not at all. Its
`manifest.json` names the inputs and the SHA-256 of every file. Beside it, `<key>.stat`
keeps what stat(2) reported when the files were last hashed: while that is unchanged,
they are not read again. (The change time is part of it: it cannot be set back.)

    <root>/<kind>/<key>/…      an entry
    <root>/<kind>/<key>.stat   its fingerprint; its own time is the entry's last use
    <root>/store/<name>/…      loose files that their user verifies (packages)
    <root>/locks/, <root>/tmp/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError, RigError
from emu.images import lockholder, manifest
from emu.images.manifest import JSON, usage
from emu.progress import Progress

_KEY = re.compile(r"[0-9a-f]{32}")
_KIND = re.compile(r"[a-z0-9][a-z0-9.-]*")
_RESERVED = {"locks", "runs", "store", "tmp"}
_TICK_NS = 20_000_000
"""Two writes this close may carry the same change time (the kernel's clock tick, doubled)."""
_LITTLE = 8 << 20
"""A failed build that leaves less room than this (bytes) failed because the disk is full."""

_in_use: dict[Path, int] = {}
"""Descriptors of the locks on entries in use by this process; released when it exits."""


@dataclass(frozen=True)
class EntryInfo:
    """What the cache holds under one key; `key` is empty for a store of loose files.

    `size` is in bytes on the disk, `created` and `last_used` are Unix times in seconds.
    """

    kind: str
    key: str
    path: Path
    inputs: Mapping[str, Any]
    size: int
    created: float
    last_used: float


def key_of(kind: str, inputs: Mapping[str, JSON]) -> str:
    """The 32 hex digits under which `inputs` are kept: SHA-256 of their canonical JSON."""
    return hashlib.sha256(manifest.canonical({"kind": kind, "inputs": inputs})).hexdigest()[:32]


class Cache:
    """The cache under `root` (default: `paths.cache_root()`), made on first use.

    Opening one removes what killed builders left behind.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or paths.cache_root()).absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("locks", "store", "tmp"):
                (self.root / name).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the cache {self.root} cannot be used: {error.strerror}",
                hint="set XDG_CACHE_HOME to a directory you can write to",
            ) from error
        self._sweep()

    def entry(
        self,
        kind: str,
        inputs: Mapping[str, JSON],
        build: Callable[[Path], None],
        progress: Progress,
        *,
        room: int = 0,
    ) -> Path:
        """The entry for `inputs`, built by `build(empty directory)` if it is not there.

        One process builds, others that want the same wait for it. An entry that does
        not verify is thrown away and built again. `room` is what the build is known to
        need, in bytes. Raises RigError when the disk is full, else what `build` raises.
        """
        path = self._path(kind, inputs)
        with self.lock(f"{kind}-{path.name}", f"builds {kind}", progress):
            if os.path.lexists(path):
                fault = self._fault(path, kind, inputs)
                if fault is None:
                    self._touch(path)
                    self._use(path)
                    return path
                progress.note(f"cache: {kind} {path.name[:8]} {fault}: thrown away, building again")
                self._remove(path)
            written, left = 0, self.need(room, f"building {kind}")
            try:
                with self.scratch(kind) as scratch:
                    made = scratch / "entry"
                    made.mkdir()
                    try:
                        build(made)
                        manifest.seal(made, kind, inputs)
                    except Exception:
                        written, left = usage(scratch), self.need(0, kind)
                        raise
                    path.parent.mkdir(exist_ok=True)
                    made.rename(path)
                    manifest.sync(path.parent)
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                # A tool may report it in other words, or have freed the space before it exited.
                full = full or os.strerror(errno.ENOSPC) in str(error)
                if full or left < _LITTLE:
                    what = f"building {kind} had written {_mib(written)} when it was full"
                    raise _no_room(self.root, self.need(0, kind), what) from error
                raise
            with contextlib.suppress(OSError):  # without it the next use hashes, no more
                self._remember(path)
            self._use(path)
        return path

    def find(self, kind: str, inputs: Mapping[str, JSON]) -> Path | None:
        """The entry for `inputs` if it is there and verifies; builds and removes nothing."""
        path = self._path(kind, inputs)
        if not path.is_dir() or not self._use(path) or self._fault(path, kind, inputs) is not None:
            return None
        self._touch(path)
        return path

    def discard(
        self, kind: str, inputs: Mapping[str, JSON], progress: Progress | None = None
    ) -> bool:
        """Remove the entry for `inputs` (say, it does not load); True if it existed."""
        path = self._path(kind, inputs)
        with self.lock(f"{kind}-{path.name}", f"removes {kind}", progress or Progress()):
            there = os.path.lexists(path)
            self._remove(path)
        return there

    def store(self, name: str) -> Path:
        """A directory for loose files that have no manifest: who reads them verifies them."""
        path = self.root / "store" / name
        self._use(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def need(self, room: int, what: str) -> int:
        """Raise RigError now if `what` needs more bytes than the disk has left; how many it has."""
        left = shutil.disk_usage(self.root).free
        if left < room:
            raise _no_room(self.root, left, f"{what} needs {_mib(room)}")
        return left

    def entries(self) -> list[EntryInfo]:
        """Everything the cache holds, by kind, the last used first."""
        found = [self._info(path) for path in self._entry_paths()]
        for path in sorted((self.root / "store").iterdir()):
            found.append(EntryInfo(path.name, "", path, {}, *manifest.extent(path)))
        return sorted(found, key=lambda info: (info.kind, -info.last_used))

    def prune(
        self, *, unused_days: float = 0, kinds: set[str] | None = None, now: float | None = None
    ) -> list[EntryInfo]:
        """Remove what was not used for that many days (0: everything); returns what was removed.

        What another process is building or may still use is kept.
        """
        limit = (time.time() if now is None else now) - unused_days * 86400
        gone = []
        for info in self.entries():
            if (kinds is not None and info.kind not in kinds) or info.last_used > limit:
                continue
            name = f"{info.kind}-{info.key}" if info.key else info.kind
            with contextlib.suppress(BlockingIOError), self._try_lock(name, "prunes"):
                with self._unused(info.path):
                    self._remove(info.path)
                gone.append(info)
        return gone

    @contextlib.contextmanager
    def scratch(self, what: str) -> Iterator[Path]:
        """An empty directory on the cache's file system that does not outlive its owner.

        If the owner is killed, the next process that opens the cache removes it.
        """
        lock_path, lock = self._claim(what)
        path = lock_path.with_suffix("")
        try:
            path.mkdir(mode=0o700)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                lock_path.unlink(missing_ok=True)
            os.close(lock)

    @contextlib.contextmanager
    def lock(self, name: str, does: str, progress: Progress) -> Iterator[None]:
        """Hold the lock `name` against other processes; `does` is what for ("builds kernel").

        Waits as long as the holder gets on with its work, and reports who it is. Raises
        RigError, which names it, when it is stopped or stuck (`lockholder.PATIENCE`).
        """
        with contextlib.ExitStack() as held:
            if not self._enter(held, name, does):
                watch = lockholder.Watch(self.root / "locks" / name, does)
                with progress.stage(f"waiting for {watch}"):
                    while not self._enter(held, name, does):
                        watch.check(progress)
                        time.sleep(0.1)
            yield

    def _enter(self, held: contextlib.ExitStack, name: str, does: str) -> bool:
        try:
            held.enter_context(self._try_lock(name, does))
        except BlockingIOError:
            return False
        return True

    # -- below: one entry at a time, its lock held by the caller

    def inputs(self, kind: str) -> list[dict[str, JSON]]:
        """What the entries of a kind were built from: quicker than `entries`."""
        found = (path for path in self._entry_paths() if path.parent.name == kind)
        return [_inputs_of(path) for path in found]

    def _path(self, kind: str, inputs: Mapping[str, JSON]) -> Path:
        if not _KIND.fullmatch(kind) or kind in _RESERVED:
            raise ValueError(f"not a kind of entry: {kind!r}")
        return self.root / kind / key_of(kind, inputs)

    def _entry_paths(self) -> Iterator[Path]:
        for kind in sorted(self.root.iterdir()):
            if kind.name not in _RESERVED and kind.is_dir():
                yield from (path for path in sorted(kind.iterdir()) if _KEY.fullmatch(path.name))

    def _info(self, path: Path) -> EntryInfo:
        made, inputs = path.stat().st_mtime, _inputs_of(path)
        try:
            used = _beside(path).stat().st_mtime
        except OSError:
            used = made
        return EntryInfo(path.parent.name, path.name, path, inputs, usage(path), made, used)

    def _fault(self, path: Path, kind: str, inputs: Mapping[str, JSON]) -> str | None:
        """What is wrong with the entry, or None; remembers a full hash that held."""
        try:
            if json.loads(_beside(path).read_bytes()) == manifest.fingerprint(path):
                return None
        except (OSError, ValueError):
            pass
        fault = manifest.fault(path, kind, inputs)
        if fault is None:
            try:
                self._remember(path)
            except OSError as error:
                return f"cannot be read ({error})"
        return fault

    def _remember(self, path: Path) -> None:
        """Record that the entry's files match their manifest now."""
        prints = manifest.fingerprint(path)
        newest = max((row[3] for row in prints.values()), default=0)
        if time.time_ns() - newest <= _TICK_NS:
            # A write in the same tick as the hash would not show: let the next use hash.
            _beside(path).write_text("{}")
            return
        with self.scratch("stat") as scratch:
            (scratch / "stat").write_text(json.dumps(prints))
            (scratch / "stat").replace(_beside(path))

    def _touch(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            os.utime(_beside(path))

    def _remove(self, path: Path) -> None:
        """Make the entry vanish at once; its bytes go afterwards."""
        _beside(path).unlink(missing_ok=True)
        if os.path.lexists(path):
            with self.scratch("removed") as scratch:
                path.rename(scratch / "entry")

    def _use(self, path: Path) -> bool:
        """Keep others from pruning `path` while this process lives; False if one is at it."""
        if path not in _in_use:
            handle = os.open(self._use_lock(path), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            _in_use[path] = handle
        return True

    @contextlib.contextmanager
    def _unused(self, path: Path) -> Iterator[None]:
        """Hold `path` against use; BlockingIOError when another process uses it."""
        mine = _in_use.pop(path, None)
        if mine is not None:
            os.close(mine)
        with self._try_lock(self._use_lock(path).name, "prunes"):
            yield

    def _use_lock(self, path: Path) -> Path:
        return self.root / "locks" / f"{path.parent.name}-{path.name}.use"

    @contextlib.contextmanager
    def _try_lock(self, name: str, does: str) -> Iterator[None]:
        handle = os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with lockholder.written(handle, does):
                yield
        finally:
            os.close(handle)

    def _claim(self, what: str) -> tuple[Path, int]:
        """A fresh name under tmp/ with its lock held: the lock comes first, then the directory."""
        while True:
            path = self.root / "tmp" / f"{what}-{secrets.token_hex(8)}.lock"
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_nlink:  # else a sweeper was faster
                    return path, handle
            os.close(handle)

    def _sweep(self) -> None:
        for lock_path in (self.root / "tmp").glob("*.lock"):
            with contextlib.suppress(OSError):  # held, or swept by another just now
                handle = os.open(lock_path, os.O_RDWR)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path = lock_path.with_suffix("")
                    shutil.rmtree(path, ignore_errors=True)
                    if not path.exists():
                        lock_path.unlink()
                finally:
                    os.close(handle)
        for path in (self.root / "tmp").iterdir():
            if path.suffix != ".lock" and not path.with_name(f"{path.name}.lock").exists():
                shutil.rmtree(path, ignore_errors=True)


def _inputs_of(path: Path) -> dict[str, JSON]:
    """As the manifest of an entry has them; none where it can't be read."""
    try:
        return dict(json.loads((path / manifest.NAME).read_bytes())["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.stat")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _no_room(root: Path, left: int, what: str) -> RigError:
    return RigError(
        f"no room on the disk: {what}, {root} has {_mib(left)} left",
        hint="`emu cache prune` makes room, or set XDG_CACHE_HOME to a larger disk",
    )
