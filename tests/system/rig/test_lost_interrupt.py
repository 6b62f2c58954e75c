"""A timer that QEMU loses: without the watchdog Xen and its guests would wait for it for ever."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from emu.rig import RigHost

REMARK = "rig | QEMU slept for 1 s: an interrupt was lost, its guests are woken"
SOURCE = Path(__file__).parents[2] / "support" / "lost_timer.c"


@pytest.fixture
def lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every QEMU started from now on loses its next timer once this file is made."""
    library, flag = tmp_path / "lose.so", tmp_path / "lose"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", str(library), str(SOURCE)], check=True
    )
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("LOSE_A_TIMER", str(flag))
    return flag


def test_watchdog_wakes_a_machine_that_lost_a_timer(lose: Path, host: RigHost) -> None:
    with host.dom0.spawn(["sleep", "2"]) as process:
        time.sleep(1)  # until the stack is idle: a running CPU would set a new timer
        lose.touch()
        process.wait(timeout=20)
    assert not lose.exists()
    assert host.xen.watchdog
    assert host.xen.watchdog.fired
    machine = host.stack.machine
    log = machine.rundir.log("console")
    machine.watch.wait(lambda: REMARK in log.read_text(), "the remark", 10)
