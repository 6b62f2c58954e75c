"""The diagnosis of a QEMU that runs, that is stopped, and that has ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_guest

from emu.machine import diagnose
from emu.machine.qemu import Machine, MachineEnded

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)
THREAD = re.compile(r"^(main loop|thread \d+): (\d+\.\d\d) s of the CPU, (\d+\.\d\d) of", re.M)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tiny_guest.running(tmp_path) as machine:
        yield machine


def spent(text: str) -> dict[str, float]:
    """Seconds of the CPU in the last half second, by thread, in the first sample."""
    first = text.split("== info registers")[0]
    return {name: float(lately) for name, _, lately in THREAD.findall(first)}


def states(pid: int) -> set[str]:
    """The states of its threads: proc(5)."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}


def test_diagnosis_of_a_running_guest(machine: Machine) -> None:
    text = diagnose.describe(machine, 5)
    assert re.search(r"^EIP=", text, re.M)
    assert "LVTT" in text
    assert max(spent(text).values()) > 0.05, "the guest waits for keys without a pause"
    assert re.search(r"^main loop: .* in \S+ for \d+\.\d{6} s$", text, re.M), text


def test_diagnosis_of_a_stopped_qemu(machine: Machine) -> None:
    os.kill(machine.pid, signal.SIGSTOP)
    try:
        # A thread at work stops at the next tick of its CPU, or later on a busy one.
        machine.watch.wait(lambda: states(machine.pid) == {"T"}, "all threads to stop", 10)
        text = diagnose.describe(machine, 0.2)
    finally:
        os.kill(machine.pid, signal.SIGCONT)
    assert set(spent(text).values()) == {0.0}
    assert "no answer: " in text


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_diagnosis_of_an_ended_qemu(machine: Machine, how: str) -> None:
    if how == "killed":
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(MachineEnded):
            machine.watch.wait(lambda: None, "its end", 10)
    else:
        machine.kill()
    assert diagnose.describe(machine, 0.2) == "QEMU has ended\n"
