"""The logs of a run that was killed, as the commands after it find them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from emu_command import EmuCommand, Warm

from emu.errors import EXIT_INTERRUPTED, EXIT_NOT_HELD, EXIT_RIG
from emu.machine.rundir import KEEP_LOGS, RunDir


def test_killed_run_keeps_its_logs(warm: Warm) -> None:
    home = warm.home()
    killed = warm.run(home)
    killed.wait_said("loading the drivers")
    (run,) = (home / "emu-xen-block/runs").iterdir()
    log = run / "console.log"
    killed.wait_until(lambda: "dom0 | " in log.read_text(), "a line of dom0's kernel")
    killed.interrupt(signal.SIGKILL)
    killed.process.wait(10)
    killed.assert_nothing_runs()
    warm.run(home).succeed()
    for _ in range(KEEP_LOGS):
        with RunDir.create(run.parent) as other:
            other.log("xen").touch()
    assert "dom0 | " in log.read_text()
    assert not (run / "state").exists()
    listed = {Path(entry["path"]): entry for entry in runs(warm, home)}
    assert listed[run]["outcome"] == "killed"
    assert listed[run]["command"] == "emu run --data 1"
    assert listed[run]["seconds"] > 0


def test_run_that_did_not_hold_is_listed_as_failed(warm: Warm) -> None:
    home = warm.home()
    warm.run(home, "--ring-pages", "32", "--domu-memory", "256").fail(EXIT_NOT_HELD, timeout=150)
    (entry,) = runs(warm, home)
    assert entry["outcome"] == "failed"
    assert entry["why"] == "did not hold: the ring has 32 pages"


def runs(warm: Warm, home: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(warm.emu(home, "runs", "--json").succeed().stdout)
    return listed


def stop_qemu(run: EmuCommand, stage: str) -> None:
    """Stop the command's QEMU in that stage."""
    run.wait_said(f"{stage} …")
    run.wait_until(run.qemus, "QEMU")
    for qemu in run.qemus():
        os.kill(qemu, signal.SIGSTOP)


def test_start_of_a_stopped_qemu_is_no_silence(warm: Warm) -> None:
    # --json: standard output is for the report; what is awaited goes to standard error.
    run = warm.run(warm.home(), "--json")
    stop_qemu(run, "starting the stack")
    run.wait_said("  … starting the stack", timeout=15.0)
    run.interrupt(signal.SIGINT)
    run.fail(EXIT_INTERRUPTED)
    assert run.stdout == ""
    run.assert_nothing_runs()


def test_guest_of_a_stopped_qemu_is_awaited_for_a_limited_time(warm: Warm) -> None:
    run = warm.run(warm.home(), "--json", environ={"EMU_TIMEOUT_SCALE": "0.5"})
    stop_qemu(run, "loading the drivers")
    run.fail(EXIT_RIG, timeout=120.0)
    assert run.stdout == ""
    run.assert_nothing_runs()
