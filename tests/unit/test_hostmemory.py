"""The memory that an emulated PC may take: this machine's, or the container's."""

from __future__ import annotations

from pathlib import Path

from emu.machine.hostmemory import HostMemory, host_memory

MEMINFO = """\
MemTotal:       24746332 kB
MemFree:        20108224 kB
MemAvailable:   23210244 kB
HugePages_Total:       0
"""


def read(tmp_path: Path, **group: str) -> HostMemory:
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, text in group.items():
        (tmp_path / f"memory.{name}").write_text(text)
    return host_memory(tmp_path / "meminfo", tmp_path)


def test_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    whole = HostMemory(24746332 << 10, 23210244 << 10)
    assert read(tmp_path) == whole
    assert read(tmp_path, max="max\n", current="4096\n") == whole
    assert read(tmp_path, max=f"{2**40}\n", current="4096\n") == whole


def test_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    limited = read(tmp_path, max=f"{4 << 30}\n", current=f"{1 << 30}\n")
    assert limited == HostMemory(4 << 30, 3 << 30)
    over = read(tmp_path, max=f"{4 << 30}\n", current=f"{5 << 30}\n")
    assert over == HostMemory(4 << 30, 0)
