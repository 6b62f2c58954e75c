"""What a cache entry holds, written down when it is made and compared when it is used.

`manifest.json` names the inputs and a digest of every file; a fingerprint is what stat(2)
reports of them, which is quick to read and can't be set back (the change time is part of it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from emu.errors import RigError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

NAME = "manifest.json"
_FEW = 64
"""Up to this many files are synced one by one, more by one sync of everything."""
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sparse_digest(path: Path) -> str:
    """SHA-256 of the blocks of 64 KiB that are not all zeros, each behind its offset, in hex.

    A guest's RAM is mostly holes: this reads what is there and skips the rest, and does not
    depend on which of the zeros are holes.
    """
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        at = 0
        while at < size:
            try:
                data = os.lseek(handle.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                break
            end = os.lseek(handle.fileno(), data, os.SEEK_HOLE)
            at = data // _BLOCK * _BLOCK
            while at < end:
                block = os.pread(handle.fileno(), _BLOCK, at)
                if block != _ZEROS[: len(block)]:
                    digest.update(at.to_bytes(8, "little") + block)
                at += len(block)
                if len(block) < _BLOCK:
                    break
    return digest.hexdigest()


def seal(made: Path, kind: str, inputs: Mapping[str, JSON]) -> None:
    """Write the manifest of a finished build and bring everything onto the disk."""
    files = {name: describe(made / name) for name in sorted(walk(made))}
    manifest = {"kind": kind, "inputs": inputs, "created": time.time(), "files": files}
    (made / NAME).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    if len(files) > _FEW:
        os.sync()
        return
    for name, what in files.items():
        if "link" not in what:
            sync(made / name)
    sync(made / NAME)
    sync(made)


def fault(path: Path, kind: str, inputs: Mapping[str, JSON]) -> str | None:
    """What is wrong with the entry at `path`, all of it read; None when nothing is."""
    try:
        manifest = json.loads((path / NAME).read_bytes())
        same = canonical(manifest["inputs"]) == canonical(inputs)
        files = manifest["files"]
        if not same or manifest["kind"] != kind or not isinstance(files, dict):
            return "has another's manifest"
    except FileNotFoundError:
        return "has no manifest"
    except (OSError, ValueError, KeyError, TypeError):
        return "has an unreadable manifest"
    try:
        for name in sorted(found := set(walk(path)) - {NAME}):
            if name not in files:
                return f"holds a file too many ({name})"
            if describe(path / name, files[name]) != files[name]:
                return f"was altered ({name})"
        if missing := sorted(set(files) - found):
            return f"lacks {missing[0]}"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def walk(path: Path) -> Iterator[str]:
    """Names, relative to `path`, of everything below it."""
    stack = [""]
    while stack:
        prefix = stack.pop()
        with os.scandir(path / prefix) as found:
            for item in found:
                yield prefix + item.name
                if item.is_dir(follow_symlinks=False):
                    stack.append(f"{prefix}{item.name}/")


def describe(path: Path, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A file as its manifest has it, with the kind of digest that `like` has."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return {"link": str(path.readlink())}
    if stat.S_ISDIR(mode):
        return {"dir": True}
    if not stat.S_ISREG(mode):
        raise RigError(f"a cache entry cannot hold {path}: not a file, directory or link")
    found = path.lstat()
    sparse = found.st_blocks * 512 < found.st_size // 2 if like is None else "sparse" in like
    return {
        **({"sparse": sparse_digest(path)} if sparse else {"sha256": sha256_of(path)}),
        "size": found.st_size,
        "executable": bool(mode & stat.S_IXUSR),
    }


def fingerprint(path: Path) -> dict[str, list[int]]:
    """What stat(2) reports of every file but directories: size, times in ns, inode."""
    prints = {}
    for name in walk(path):
        found = (path / name).lstat()
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        prints[name] = [found.st_ino, size, found.st_mtime_ns, found.st_ctime_ns]
    return prints


def usage(path: Path) -> int:
    """Bytes on the disk below `path`; what vanishes while counting counts nothing."""
    total = 0
    with contextlib.suppress(OSError):
        for name in walk(path):
            with contextlib.suppress(OSError):
                total += (path / name).lstat().st_blocks * 512
    return total


def extent(path: Path) -> tuple[int, float, float]:
    """Bytes on the disk below `path`, and the times of its oldest and newest change."""
    total, times = 0, list[float]()
    with contextlib.suppress(OSError):
        for name in walk(path):
            with contextlib.suppress(OSError):
                found = os.lstat(f"{path}/{name}")
                total += found.st_blocks * 512
                times.append(found.st_mtime)
    times = times or [path.stat().st_mtime]
    return total, min(times), max(times)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
