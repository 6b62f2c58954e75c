"""Whether this machine's kernel and the user's limits are fit for the rig, by trying."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from emu.hosttools import find_tool

RAM_NEED = 2 << 30
"""Bytes of the largest file of a run with 16 ring pages: a guest's RAM, sparse."""
ADDRESS_NEED = 8 << 30
"""Bytes of address space for QEMU, that RAM, and its translation buffer."""
FILES_NEED = 256
"""Descriptors: QEMU and this process have about 60 each."""


def _proc_fd() -> str | None:
    out, into = os.pipe()
    try:
        Path(f"/proc/self/fd/{out}").stat()
    finally:
        os.close(out)
        os.close(into)
    return None


def _memfd() -> str | None:
    fd = os.memfd_create("emu-doctor")
    try:
        # As sparse as a guest's RAM: no page is used.
        os.ftruncate(fd, RAM_NEED)
    finally:
        os.close(fd)
    return None


def _pidfd() -> str | None:
    os.close(os.pidfd_open(os.getpid()))
    return None


def _pdeathsig() -> str | None:
    if find_tool("setpriv") is None:
        return None  # reported as a missing tool
    command = ["setpriv", "--pdeathsig", "KILL", "--", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return tried.stderr.strip() or None if tried.returncode else None


def _limits() -> str | None:
    wanted = (
        ("file size (ulimit -f)", resource.RLIMIT_FSIZE, RAM_NEED),
        ("address space (ulimit -v)", resource.RLIMIT_AS, ADDRESS_NEED),
        ("open files (ulimit -n)", resource.RLIMIT_NOFILE, FILES_NEED),
    )
    for name, which, need in wanted:
        soft, _ = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY and soft < need:
            return f"the limit of {name} is {soft}, {need} are needed"
    return None


CHECKS: dict[str, Callable[[], str | None]] = {
    "/proc/self/fd": _proc_fd,
    "memfd": _memfd,
    "pidfd": _pidfd,
    "setpriv --pdeathsig": _pdeathsig,
    "user limits": _limits,
}


def troubles() -> dict[str, str]:
    """Name of a check → what is wrong; empty when all is fine."""
    found = {}
    for name, look in CHECKS.items():
        try:
            trouble = look()
        except OSError as error:
            trouble = str(error)
        if trouble:
            found[name] = trouble
    return found
