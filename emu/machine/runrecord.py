"""What is known of a run beside its logs: who began it, when, and how it ended.

The record is the content of the file whose lock the run's owner holds (emu.machine.rundir): one
JSON object a line, the first written when the run begins, the second when it ends. A run whose
lock is free and whose record has no second line was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emu.errors import InputError, NotHeld

Outcome = Literal["held", "failed", "rig error", "interrupted", "killed", "running", "unknown"]
"""unknown: the record is empty or unreadable (an older version's run)."""

_PYTEST = "PYTEST_CURRENT_TEST"
"""pytest's own: "tests/system/test_x.py::test_y (setup)"."""
_MOST = 1 << 16


@dataclass(frozen=True)
class RunRecord:
    """A run's record. `began` is a Unix time; `seconds` is None while the run goes on.

    `command` is the command line, or the test that started the run. `why` says what failed; ""
    for a run that held. Of a run that was killed, `seconds` last until its last line in a log;
    they are None where nothing is known.
    """

    path: Path
    began: float
    command: str
    outcome: Outcome
    why: str
    seconds: float | None


def begin(lock: int) -> None:
    """Write the first line into the file behind the descriptor `lock`."""
    _append(lock, {"began": time.time(), "command": _command(), "pid": os.getpid()})


def end(lock: int, outcome: Outcome, why: str) -> None:
    """Write the second line."""
    _append(lock, {"ended": time.time(), "outcome": outcome, "why": why})


def outcome_of(error: BaseException | None) -> Outcome:
    """How a run ended that `error` ended; None: nothing did."""
    if error is None:
        return "held"
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return "interrupted"
    if isinstance(error, NotHeld | InputError | AssertionError):
        return "failed"
    return "rig error" if isinstance(error, Exception) else "failed"  # pytest.fail


def was_killed(lock: int) -> bool:
    """Whether the record behind `lock`, which its owner no longer holds, has no end."""
    began, ended = _lines(os.pread(lock, _MOST, 0))
    return bool(began) and not ended


def read(path: Path, lock_name: str) -> RunRecord:
    """The record of the run in the directory `path`. Raises OSError when there is none."""
    lock = os.open(path / lock_name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        running = _held(lock)  # before the record is read: its end is written under the lock
        began, ended = _lines(os.pread(lock, _MOST, 0))
    finally:
        os.close(lock)
    start = float(began.get("began", path.stat().st_mtime))
    outcome: Outcome = ended.get("outcome", "killed" if began else "unknown")
    seconds: float | None = float(ended.get("ended", max(start, _last_write(path)))) - start
    if running and not ended:
        outcome = "running"
    if outcome in ("running", "unknown"):
        seconds = None
    return RunRecord(
        path, start, str(began.get("command", "")), outcome, str(ended.get("why", "")), seconds
    )


def _append(lock: int, line: dict[str, Any]) -> None:
    os.lseek(lock, 0, os.SEEK_END)
    os.write(lock, (json.dumps(line) + "\n").encode())


def _lines(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both lines; {} for one that is missing, or cut off by a full disk or a loss of power."""
    found: list[dict[str, Any]] = []
    for line in text.split(b"\n")[:-1][:2]:
        try:
            value = json.loads(line)
        except ValueError:
            break
        found.append(value if isinstance(value, dict) else {})
    found += [{}, {}]
    return found[0], found[1]


def _held(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _last_write(path: Path) -> float:
    """When a log in `path` was last written; 0 when there is none."""
    return max((log.stat().st_mtime for log in path.glob("*.log")), default=0.0)


def _command() -> str:
    """This process's command line, the program without its folder; under pytest the test's name."""
    test = os.environ.get(_PYTEST, "").rpartition(" (")[0]
    if test and "pytest" in sys.modules:  # a command that a test starts inherits the variable
        return f"pytest {test}"
    name = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["emu" if name == "cli.py" else name, *sys.argv[1:]])
