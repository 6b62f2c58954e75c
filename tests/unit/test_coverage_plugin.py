"""`pytest --emu-coverage`: a record for each test, and which tests run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu.suite import records

CONFTEST = """
import pytest

@pytest.fixture
def emu_stack():
    return "in place of a host, which takes seconds"
"""
TESTS = """
def test_passes(emu_stack): pass
def test_fails(emu_stack): assert False
def test_without_drivers(): pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_a.py").write_text(TESTS)
    return tmp_path


def run(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "--emu-coverage", "records", *options],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return done.stdout + done.stderr


def outcomes(folder: Path) -> dict[str, str]:
    return {one.test: one.outcome for one in records.read_all(folder / "records")}


def test_what_is_recorded_and_what_runs_again(folder: Path) -> None:
    """Not a test that passed, nor one without drivers; one that failed, or whose file changed."""
    assert "1 failed, 1 passed, 1 deselected" in run(folder, "--emu-coverage-new")
    found = {"test_a.py::test_fails": "failed", "test_a.py::test_passes": "passed"}
    assert outcomes(folder) == found
    assert all(one.reached == () for one in records.read_all(folder / "records"))
    chosen = ["test_a.py::test_passes", "test_a.py::test_fails"]
    assert records.read_chosen(folder / "records") == chosen
    assert "1 failed, 2 deselected" in run(folder, "--emu-coverage-new")
    assert records.read_chosen(folder / "records") == chosen
    (folder / "test_a.py").write_text(TESTS.replace("assert False", "pass"))
    assert "2 passed" in run(folder, "--emu-coverage-new", "-n", "2")
    assert outcomes(folder) == dict.fromkeys(found, "passed")
    assert "3 deselected" in run(folder, "--emu-coverage-new")


def test_a_directory_that_is_none(folder: Path) -> None:
    (folder / "records").write_text("a file")
    output = run(folder)
    assert "--emu-coverage" in output
    assert "Not a directory" in output
    assert "INTERNALERROR" not in output
