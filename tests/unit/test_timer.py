"""A test's time limit does not count what is built for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import time
import pytest

@pytest.mark.timeout(1)
def test_waits_for_a_kernel(emu_progress):
    for _ in range(2):
        with emu_progress.stage("building"), emu_progress.stage("unpacking"):
            time.sleep(1.2)

@pytest.mark.timeout(1)
def test_hangs_afterwards(emu_progress):
    with emu_progress.stage("building"):
        time.sleep(0.1)
    time.sleep(10)

@pytest.mark.timeout(1)
def test_build_fails(emu_progress):
    with pytest.raises(OSError), emu_progress.stage("building"):
        raise OSError
    time.sleep(0.1)

def test_without_a_limit(emu_progress):
    with emu_progress.stage("building"):
        time.sleep(0.1)
"""


def run(folder: Path, *options: str) -> str:
    (folder / "test_times.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options],
        cwd=folder, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip


def test_timer_ignores_builds(tmp_path: Path) -> None:
    output = run(tmp_path)
    for passes in ("waits_for_a_kernel", "build_fails", "without_a_limit"):
        assert f"PASSED test_times.py::test_{passes}\n" in output
    assert "FAILED test_times.py::test_hangs_afterwards - Failed: Timeout (>1.0" in output


def test_timer_is_optional(tmp_path: Path) -> None:
    output = run(tmp_path, "-p", "no:timeout", "-W", "ignore", "-k", "not hangs")
    assert "3 passed" in output
