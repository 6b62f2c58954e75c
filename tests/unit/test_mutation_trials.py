"""Mutants made by machine: tests run on one up to the first that fails, with a real pytest."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emu.errors import RigError
from emu.images.cache import Cache
from emu.suite.mutation.ordering import Reaching
from emu.suite.mutation.trials import Trials

HERE = "tests/unit/test_mutation_trials.py"
ASKED = "EMU_TEST_TRIAL"
"""What the targets below do; on their own they pass."""


def asked(name: str) -> bool:
    return name in os.environ.get(ASKED, "").split()


@pytest.fixture
def breaks() -> None:
    if asked("breaks"):
        raise RigError("no room")


def test_target_one() -> None:
    assert not asked("one"), "the first was to fail"


def test_target_two() -> None:
    assert not asked("two"), "the second was to fail"


@pytest.mark.timeout(300)
def test_target_sleeps() -> None:
    if asked("sleeps"):
        (Path(os.environ["EMU_TEST_STARTED"])).touch()
        time.sleep(120)


def test_target_breaks(breaks: None) -> None:
    pass


def target(name: str, seconds: float = 1.0) -> Reaching:
    return Reaching(f"{HERE}::test_target_{name}", seconds)


def run(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, does: str, *tests: Reaching
) -> list[tuple[str, str]]:
    monkeypatch.setenv(ASKED, does)
    found = trials.run("mutant", None, tests, 100.0)
    return [(one.node.removeprefix(f"{HERE}::test_target_"), one.outcome.kind) for one in found]


def test_trials_stop_at_the_first_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(Cache(tmp_path / "cache"))
    order = target("two"), target("one"), target("sleeps")
    assert run(trials, monkeypatch, "one", *order) == [("two", "passed"), ("one", "failed")]
    known = trials.known("mutant", None, [one.node for one in order])
    assert [one.outcome.kind for one in known] == ["passed", "failed"]
    assert "the first was to fail" in known[1].outcome.messages[0]
    again = Trials(Cache(tmp_path / "cache"), again=True)
    assert again.known("mutant", None, [order[0].node]) == []
    assert [one.noticed for one in again.ever("mutant")] == [False, True]
    assert again.ever("another") == []


def test_trials_go_on_after_one_error_of_the_rig_which_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(Cache(tmp_path / "cache"))
    order = target("breaks"), target("one"), target("two")
    found = run(trials, monkeypatch, "breaks two", *order)
    assert found == [("breaks", "error"), ("one", "passed"), ("two", "failed")]
    assert len(trials.known("mutant", None, [one.node for one in order])) == 2


def test_test_that_hangs_is_ended_by_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it has a mark of its own."""
    monkeypatch.setattr("emu.suite.mutation.trials._MORE", 1.0)
    monkeypatch.setenv("EMU_TEST_STARTED", str(tmp_path / "started"))
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "1")
    trials = Trials(Cache(tmp_path / "cache"))
    assert run(trials, monkeypatch, "sleeps", target("sleeps", 0.5)) == [("sleeps", "failed")]
    (one,) = trials.known("mutant", None, [target("sleeps").node])
    assert one.hung, one.outcome.messages


def test_interruption_keeps_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    monkeypatch.setenv("EMU_TEST_STARTED", str(started))
    monkeypatch.setenv(ASKED, "sleeps")
    trials = Trials(Cache(tmp_path / "cache"))
    order = target("one"), target("sleeps", 100.0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(trials.run, "mutant", None, order, 100.0)
        until = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < until, "pytest did not come to the test"
            time.sleep(0.05)
        trials.stop()
        with pytest.raises(RigError, match="interrupted"):
            running.result(timeout=20)
    known = trials.known("mutant", None, [one.node for one in order])
    assert [one.node for one in known] == [order[0].node]


def test_trials_without_a_test_are_an_error_of_the_rig(tmp_path: Path) -> None:
    trials = Trials(Cache(tmp_path / "cache"))
    with pytest.raises(RigError, match="pytest ended with status"):
        trials.run("mutant", None, [Reaching(f"{HERE}::test_nowhere", 1.0)], 10.0)
