"""Passes in a row: kept, resumed, begun anew after a change, ended by one that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.suite.passes import Passes

QUIET = ["-q", "-p", "no:cacheprovider"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one test, which passes unless a file `fails` lies beside it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts in a third of the time
    made = tmp_path / "checkout"
    for folder in ("emu", "tests/mutants", "guest-images", "qemu-patches"):
        (made / folder).mkdir(parents=True)
    (made / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (made / "tests/test_it.py").write_text(
        "from pathlib import Path\ndef test_it(): assert not Path('fails').exists()\n"
    )
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_row_is_resumed(cache: Cache, checkout: Path) -> None:
    reported: list[str] = []
    Passes(cache, QUIET, checkout).run(1, reported.append)
    row = Passes(cache, QUIET, checkout).run(2, reported.append)
    assert reported == ["pass 1 of 1", "pass 2 of 2"]
    assert (len(row.passes), row.broken) == (2, False)
    assert {one.tests for one in row.passes} == {1}
    Passes(cache, QUIET, checkout).run(2, reported.append)
    assert len(reported) == 2


def test_failed_pass_ends_the_row(cache: Cache, checkout: Path) -> None:
    passes = Passes(cache, QUIET, checkout)
    passes.run(1, print)
    (checkout / "fails").touch()
    row = passes.run(3, print)
    assert (len(row.passes), row.broken) == (1, True)
    assert passes.known() == ()


def test_change_begins_another_row(cache: Cache, checkout: Path) -> None:
    Passes(cache, QUIET, checkout).run(1, print)
    (checkout / "tests/mutants/another.patch").write_text("not used by a pass")
    assert len(Passes(cache, QUIET, checkout).known()) == 1
    assert not Passes(cache, [*QUIET, "-x"], checkout).known()
    (checkout / "emu/module.py").touch()
    assert not Passes(cache, QUIET, checkout).known()


def test_change_during_a_pass_is_refused(cache: Cache, checkout: Path) -> None:
    test = checkout / "tests/test_it.py"
    test.write_text("from pathlib import Path\ndef test_it(): Path(__file__).write_text('')\n")
    with pytest.raises(InputError, match="changed while the pass ran"):
        Passes(cache, QUIET, checkout).run(1, print)
    assert not Passes(cache, QUIET, checkout).known()


def test_damaged_row_is_ignored(cache: Cache, checkout: Path) -> None:
    passes = Passes(cache, QUIET, checkout)
    passes.run(1, print)
    (kept,) = cache.store("passes").iterdir()
    kept.write_text(kept.read_text()[:-9])
    assert passes.known() == ()


def test_broken_pytest_is_reported(cache: Cache, checkout: Path) -> None:
    with pytest.raises(InputError, match="ran no tests"):
        Passes(cache, [*QUIET, "-k", "nothing"], checkout).run(1, print)
    (checkout / "conftest.py").write_text("def pytest_sessionstart(): raise ZeroDivisionError")
    with pytest.raises(RigError, match="pytest ended with status 3"):
        Passes(cache, QUIET, checkout).run(1, print)


def test_interruption_ends_pytest_and_does_not_count(
    cache: Cache, checkout: Path, tmp_path: Path
) -> None:
    began, ended = tmp_path / "began", tmp_path / "ended"
    (checkout / "tests/test_it.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "def test_it():\n"
        "    try:\n"
        f"        Path({str(began)!r}).touch(); time.sleep(60)\n"
        f"    finally: Path({str(ended)!r}).touch()\n"
    )
    script = (
        "import sys; from pathlib import Path; from emu.images.cache import Cache; "
        "from emu.suite.passes import Passes; "
        f"Passes(Cache(Path(sys.argv[1])), {QUIET!r}, Path(sys.argv[2])).run(1, print)"
    )
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", script, cache.root, checkout],
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 30
    while not began.exists():
        assert time.monotonic() < until, "the pass did not begin"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.wait(30)
    assert ended.exists()
    assert Passes(cache, QUIET, checkout).known() == ()
