"""Processes of this machine, as tests look for them in /proc."""

from __future__ import annotations

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter: gone between open and read
        return False
    return stat.rsplit(")")[1].split()[0] != "Z"


def gone(*pids: int, within: float = 5.0) -> bool:
    """Whether none of the processes runs any more, `within` so many seconds."""
    end = time.monotonic() + within
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
