"""What is kept of runs that have ended, and `emu runs`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emu import cli
from emu.errors import InputError, NotHeld, RigError
from emu.machine import runrecord
from emu.machine.rundir import KEEP_LOGS, RunDir, records, sweep

KILLED = """
import os, signal, sys
from pathlib import Path
from emu.machine.rundir import RunDir
run = RunDir.create(Path(sys.argv[1]))
run.log("xen").write_text("(XEN) last line\\n")
(run.state / "overlay").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_run(root: Path) -> Path:
    """A run whose owner got SIGKILL; its directory."""
    subprocess.run([sys.executable, "-c", KILLED, str(root)])
    (path,) = (record.path for record in records(root) if record.outcome == "killed")
    return path


def held_run(root: Path) -> Path:
    with RunDir.create(root) as run:
        run.log("xen").touch()
    return run.path


def test_killed_run_keeps_its_logs_like_one_that_failed(tmp_path: Path) -> None:
    path = killed_run(tmp_path)
    for _ in range(KEEP_LOGS + 1):
        held_run(tmp_path)
    assert (path / "xen.log").read_text() == "(XEN) last line\n"
    assert not (path / "state").exists()
    (killed,) = (record for record in records(tmp_path) if record.path == path)
    assert not killed.command.startswith("pytest"), "a command of its own, started by a test"
    held = [record for record in records(tmp_path) if record.outcome == "held"]
    assert len(held) == KEEP_LOGS
    assert sweep(tmp_path, keep_failed=0) == [path]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotHeld("the ring is too small"), "failed"),
        (InputError("no such module"), "failed"),
        (RigError("QEMU did not start"), "rig error"),
        (OSError("a bug"), "rig error"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_error_that_ends_a_run_is_recorded(
    tmp_path: Path, error: BaseException, outcome: str
) -> None:
    def fail() -> None:
        with RunDir.create(tmp_path) as run:
            run.log("xen").touch()
            raise error

    with pytest.raises(type(error)):
        fail()
    for _ in range(KEEP_LOGS + 1):
        held_run(tmp_path)
    record = records(tmp_path)[-1]
    assert (record.outcome, record.why) == (outcome, str(error) or "KeyboardInterrupt")


def test_kept_run_has_failed(tmp_path: Path) -> None:
    with RunDir.create(tmp_path) as run:
        run.log("xen").touch()
        run.keep("did not hold: the ring has 16 pages")
    (record,) = records(tmp_path)
    assert (record.outcome, record.why) == ("failed", "did not hold: the ring has 16 pages")


def test_run_is_running_until_it_is_closed(tmp_path: Path) -> None:
    with RunDir.create(tmp_path) as run:
        run.log("xen").touch()
        (record,) = records(tmp_path)
        assert (record.path, record.outcome, record.seconds) == (run.path, "running", None)
        assert record.command.startswith(
            "pytest tests/unit/test_run_records.py::test_run_is_running"
        )
    (record,) = records(tmp_path)
    assert record.outcome == "held"
    assert record.seconds is not None
    assert 0 <= record.seconds < 60


@pytest.mark.parametrize("text", [b"", b"not JSON\n", b'{"began": 1'])
def test_unreadable_record_is_unknown_and_no_failure(tmp_path: Path, text: bytes) -> None:
    path = held_run(tmp_path)
    (path / "lock").write_bytes(text)
    (record,) = records(tmp_path)
    assert (record.outcome, record.seconds, record.command) == ("unknown", None, "")
    assert sweep(tmp_path, keep=0) == [path]


def test_command_line_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/emu", "run", "--front", "a file.ko"])
    held_run(tmp_path)
    assert records(tmp_path)[0].command == "emu run --front 'a file.ko'"


def test_runs_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["runs"]) == 0
    assert "no run has left logs" in capsys.readouterr().out
    root = tmp_path / "emu-xen-block/runs"
    killed = killed_run(root)
    held = held_run(root)
    assert cli.main(["runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(entry["path"], entry["outcome"]) for entry in found} == {
        (str(killed), "killed"),
        (str(held), "held"),
    }
    assert set(found[0]) == {"path", "began", "command", "outcome", "why", "seconds"}
    assert cli.main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["when", "ended", "took", "directory", "command"]
    assert any("killed" in line and str(killed) in line for line in lines)
    assert cli.main(["runs", "--json", "--number", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_record_outlives_a_directory_that_was_renamed(tmp_path: Path) -> None:
    with RunDir.create(tmp_path) as run:
        run.log("xen").touch()
        moved = run.path.rename(tmp_path / "20150522-140000-0000")
    assert runrecord.read(moved, "lock").outcome == "held"
