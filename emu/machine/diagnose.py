"""The state of QEMU itself: what its threads wait for, its virtual CPU and timer.

A machine that hangs may be the guest's fault or QEMU's. If no thread uses the CPU while a guest
has timers to wait for, it is QEMU's (or this machine's); the local APIC then shows whether its
timer has expired, and the registers whether the CPU could take an interrupt.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from emu.errors import EmuError
from emu.machine.qemu import Machine

ASKED = ("info registers", "info pic", "info lapic")
"""Commands of QEMU's human monitor. They wake its main loop: the threads are sampled before."""
_SAMPLE = 0.5
"""Seconds for which the CPU time of each thread is measured."""
_TICK = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12
"""Fields of /proc/…/stat behind the name, of which the first is the state: proc(5)."""
_PPOLL = {"x86_64": 271, "aarch64": 73}
"""Number of the system call in which the main loop waits for its next timer."""


def describe(machine: Machine, timeout: float) -> str:
    """Threads before and after the monitor was asked, and its answers, each with a heading.

    `timeout` in seconds (before scaling) for each question. Never raises for what QEMU does:
    the error stands in place of the answer.
    """
    if not machine.running:
        return "QEMU has ended\n"
    parts = [("threads", _threads(machine.pid))]
    for question in ASKED:
        try:
            answer = str(
                machine.qmp("human-monitor-command", timeout=timeout, command_line=question)
            ).replace("\r", "")
        except EmuError as error:
            answer = f"no answer: {error}\n"
        parts.append((question, answer))
    parts.append(("threads, after QEMU was asked", _threads(machine.pid)))
    return "\n".join(f"== {title}\n{text}" for title, text in parts)


def _threads(pid: int) -> str:
    before = dict(_seconds(pid))
    time.sleep(_SAMPLE)
    lines = []
    for task, now in _seconds(pid):
        name = "main loop" if task.name == str(pid) else f"thread {task.name}"
        lately = now - before.get(task, now)
        lines.append(f"{name}: {now:.2f} s of the CPU, {lately:.2f} of the last {_SAMPLE} s; ")
        lines[-1] += f"in {_read(task / 'wchan') or '?'}{_wait(task)}"
    return "\n".join(lines) + "\n"


def _seconds(pid: int) -> Iterator[tuple[Path, float]]:
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda task: int(task.name)):
        fields = _read(task / "stat").rpartition(")")[2].split()
        if len(fields) > _SYSTEM:
            yield task, (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICK


def _wait(task: Path) -> str:
    """The time-out of a ppoll: when the main loop expects its next timer."""
    call = _read(task / "syscall").split()
    if len(call) < 4 or call[0] != str(_PPOLL.get(platform.machine())):
        return ""
    address = int(call[3], 16)
    if not address:
        return " without end"
    try:
        with (task / "mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            seconds, nanoseconds = struct.unpack("qq", memory.read(16))
    except (OSError, struct.error):  # it has returned meanwhile, or we may not read it
        return ""
    return f" for {seconds + nanoseconds / 1e9:.6f} s"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # a thread that has ended meanwhile, or another user's QEMU
        return ""
