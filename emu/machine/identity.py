"""Which QEMU, and which processor: part of the keys of the cache.

A program is asked once in the life of this process, unless its file changes.
"""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from emu.errors import RigError


def qemu_version(qemu: str) -> str:
    """The first line of `qemu --version`. Raises RigError, OSError when it does not run."""
    return _version(qemu, *_stamp(Path(qemu)))


def hash_of_program(path: Path) -> str:
    """SHA-256 of a program, in hexadecimal."""
    return _hash(path, *_stamp(path))


def host_cpu() -> str:
    """The processor's name, from /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@cache
def _version(qemu: str, mtime_ns: int, size: int) -> str:
    made = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=30)
    if made.returncode:
        raise RigError(f"{qemu} --version failed", lines=made.stderr.splitlines())
    return made.stdout.splitlines()[0]


@cache
def _hash(path: Path, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
