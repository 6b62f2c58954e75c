"""The watchdog: which machine it wakes, and which not."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_guest

from emu.errors import RigError
from emu.machine.qemu import Machine
from emu.machine.watchdog import ASLEEP_AFTER, Watchdog, sleepers

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)
LONG = 2 * ASLEEP_AFTER
"""Seconds after which the watchdog would have fired."""
PATIENCE = 20.0
REMARK = "rig | QEMU slept for 1 s: an interrupt was lost, its guests are woken"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tiny_guest.running(tmp_path) as machine:
        yield machine


def merged(machine: Machine) -> str:
    return machine.rundir.log("console").read_text()


def halt(machine: Machine, key: str = "H") -> None:
    machine.dom0.send(key)
    machine.watch.wait(lambda: sleepers(machine.pid) or None, "the guest to halt", 10)


def test_watchdog_wakes_a_guest_without_timers(machine: Machine) -> None:
    woken = threading.Event()
    watchdog = Watchdog(machine, woken.set)
    try:
        halt(machine)
        assert woken.wait(PATIENCE)
        assert watchdog.fired
        machine.watch.wait(lambda: REMARK in merged(machine), "the remark", PATIENCE)
    finally:
        watchdog.close()


def test_watchdog_goes_on_after_an_interrupt_that_failed(machine: Machine) -> None:
    twice = threading.Event()

    def interrupt() -> None:
        if watchdog.fired == 2:
            twice.set()
        raise RigError("no answer from the guest agent")

    watchdog = Watchdog(machine, interrupt)
    try:
        halt(machine)
        assert twice.wait(PATIENCE)
        machine.watch.check()
    finally:
        watchdog.close()
    assert REMARK not in merged(machine)


@pytest.mark.parametrize("how", ["busy", "idle", "paused", "stopped", "closed"])
def test_watchdog_leaves_other_machines_alone(machine: Machine, how: str) -> None:
    if how != "busy":
        halt(machine, "I" if how == "idle" else "H")
    if how == "paused":
        machine.pause()
    if how == "stopped":
        os.kill(machine.pid, signal.SIGSTOP)
    watchdog = Watchdog(machine, lambda: None)
    try:
        if how == "closed":
            watchdog.close()
        time.sleep(LONG)
        assert watchdog.fired == 0
        if how == "stopped":
            assert sleepers(machine.pid) == {}
    finally:
        os.kill(machine.pid, signal.SIGCONT)
        watchdog.close()


def test_sleepers_of_an_ended_process_are_none(machine: Machine) -> None:
    pid = machine.pid
    machine.kill()
    assert sleepers(pid) == {}
