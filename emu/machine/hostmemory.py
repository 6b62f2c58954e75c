"""How much memory there is for emulated machines: this machine's, or our control group's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostMemory:
    """Bytes; `available` counts what the kernel would give up (proc_meminfo(5))."""

    total: int
    available: int


def host_memory(meminfo: Path = _MEMINFO, group: Path = _GROUP) -> HostMemory:
    """The machine's memory, or what a container may have of it (cgroup v2, memory.max)."""
    about = {
        name: int(rest.split()[0]) << 10
        for name, _, rest in (line.partition(":") for line in meminfo.read_text().splitlines())
        if rest.split()
    }
    total, available = about["MemTotal"], about["MemAvailable"]
    limit = _number(group / "memory.max")
    if limit is not None and limit < total:
        used = _number(group / "memory.current") or 0
        total, available = limit, min(available, max(0, limit - used))
    return HostMemory(total, available)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # no such group, or no controller
        return None
    return int(text) if text.isdecimal() else None
