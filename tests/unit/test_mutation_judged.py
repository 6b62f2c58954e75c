"""Mutants made by machine: what is one, what counts as noticed, and the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from small_driver import all_of, candidate

from emu import cli
from emu.commands import sampled
from emu.errors import EXIT_HELD, EXIT_INPUT, EXIT_NOT_HELD, EXIT_RIG
from emu.images.cache import Cache
from emu.images.driver_patches import driver_patch
from emu.progress import Progress
from emu.suite.mutation import compiling
from emu.suite.mutation.candidates import Candidate
from emu.suite.mutation.compiling import Compiled, Compiler, Kind
from emu.suite.mutation.judge import SOUND, Judge, Judged, Verdict, first_line
from emu.suite.mutation.ordering import Reaching
from emu.suite.mutation.survey import Sample, Survey
from emu.suite.mutation.trials import Tried
from emu.suite.testruns import Kind as Word
from emu.suite.testruns import Outcome

# -- what the compiler says


def test_what_is_no_mutant_is_replaced_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = all_of()
    said = {
        order[0].id: Compiled("a", Kind.MUTANT),
        order[1].id: Compiled("", Kind.REFUSED),
        order[2].id: Compiled("sound", Kind.SAME),
        order[3].id: Compiled("a", Kind.MUTANT),
        order[4].id: Compiled("b", Kind.MUTANT),
    }
    monkeypatch.setattr(compiling._Benches, "compiled", lambda self, one: said[one.id])
    monkeypatch.setattr(Compiler, "__init__", lambda self: None)
    monkeypatch.setattr(Compiler, "_keep", lambda self: None)
    monkeypatch.setattr(compiling, "_CHUNK", 1)
    compiler = Compiler()  # type: ignore[call-arg]
    compiler._context = type("", (), {"progress": Progress()})()
    chosen, kinds = compiler.choose(order, 2, 1)
    assert chosen == [order[0], order[4]]
    assert Counter(kinds.values()) == {
        Kind.MUTANT: 2,
        Kind.REFUSED: 1,
        Kind.SAME: 1,
        Kind.TWIN: 1,
    }


# -- the verdict


def tried(node: str, kind: Word, message: str = "") -> Tried:
    return Tried(node, Outcome(kind, (message,) if message else (), 1.0))


class Scripted:
    """Trials that come out as they are told, up to the first that fails."""

    def __init__(self, on_mutant: Mapping[str, Tried], sound: Mapping[str, Tried] = {}) -> None:
        self._on_mutant, self._sound = on_mutant, sound
        self.ran: list[str] = []
        self.earlier: dict[str, list[Tried]] = {}

    def known(self, name: str, patch: Path | None, nodes: Sequence[str]) -> list[Tried]:
        return []

    def ever(self, name: str) -> list[Tried]:
        return self.earlier.get(name, [])

    def run(
        self, name: str, patch: Path | None, tests: Sequence[Reaching], seconds: float
    ) -> list[Tried]:
        if name == SOUND:
            (test,) = tests
            return [self._sound.get(test.node, tried(test.node, "passed"))]
        found: list[Tried] = []
        for test in tests:
            found.append(self._on_mutant.get(test.node, tried(test.node, "passed")))
            self.ran.append(test.node)
            if found[-1].noticed or found[-1].outcome.kind == "error":
                break
        return found


class Reached4:
    def tests_of(self, candidate: Candidate) -> Sequence[Reaching]:
        return [Reaching(f"t.py::t{n}", 2.0 + n / 10) for n in range(4)]


def judged_by(trials: Scripted, tmp_path: Path, limit: float = 100.0) -> tuple[Judged, Judge]:
    judge = Judge(Reached4(), trials, Cache(tmp_path / "cache"), limit)  # type: ignore[arg-type]
    return judge.judge(candidate()), judge


def test_killed_by_the_first_test_that_fails(tmp_path: Path) -> None:
    trials = Scripted({"t.py::t2": tried("t.py::t2", "failed", "AssertionError: lost\nassert")})
    found, _ = judged_by(trials, tmp_path)
    assert (found.verdict, found.test) == (Verdict.KILLED, "t.py::t2")
    assert (found.line, found.passed, found.reaching) == ("AssertionError: lost", 2, 4)
    assert trials.ran == ["t.py::t0", "t.py::t1", "t.py::t2"]


def test_what_earlier_tests_did_is_learned_from(tmp_path: Path) -> None:
    """Also of mutants that are not in the sample."""
    trials = Scripted({"t.py::t3": tried("t.py::t3", "failed", "AssertionError: lost")})
    trials.earlier = {candidate("condition true").id: [tried("t.py::t3", "failed", "lost, too")]}
    judge = Judge(Reached4(), trials, Cache(tmp_path / "cache"), 100.0)  # type: ignore[arg-type]
    judge.remember(all_of())
    judge.judge(candidate())
    assert trials.ran == ["t.py::t3"]


def test_survived(tmp_path: Path) -> None:
    found, _ = judged_by(Scripted({}), tmp_path)
    assert (found.verdict, found.passed, found.reaching) == (Verdict.SURVIVED, 4, 4)


def test_survived_within_the_time(tmp_path: Path) -> None:
    found, _ = judged_by(Scripted({}), tmp_path, limit=6.0)
    assert (found.verdict, found.passed, found.reaching) == (Verdict.SURVIVED, 2, 4)


@pytest.mark.parametrize("kind", ["failed", "error"])
def test_hung(tmp_path: Path, kind: Word) -> None:
    message = "Failed: Timeout (>26.0s) from pytest-timeout."
    found, _ = judged_by(Scripted({"t.py::t1": tried("t.py::t1", kind, message)}), tmp_path)
    assert (found.verdict, found.test, found.line) == (Verdict.HUNG, "t.py::t1", message)


def test_one_error_of_the_rig_does_not_hide_who_notices(tmp_path: Path) -> None:
    trials = Scripted(
        {
            "t.py::t0": tried("t.py::t0", "error", "RigError: no room"),
            "t.py::t3": tried("t.py::t3", "failed", "AssertionError: lost"),
        }
    )
    found, _ = judged_by(trials, tmp_path)
    assert (found.verdict, found.test) == (Verdict.KILLED, "t.py::t3")


def test_error_of_the_rig_is_no_verdict(tmp_path: Path) -> None:
    trials = Scripted({"t.py::t0": tried("t.py::t0", "error", "RigError: no room")})
    found, _ = judged_by(trials, tmp_path)
    assert (found.verdict, found.line) == (Verdict.RIG, "RigError: no room")
    assert found.passed == 3


def test_two_errors_of_the_rig_end_it(tmp_path: Path) -> None:
    broken = {f"t.py::t{n}": tried(f"t.py::t{n}", "error", "RigError: no") for n in range(4)}
    trials = Scripted(broken)
    found, _ = judged_by(trials, tmp_path)
    assert (found.verdict, len(trials.ran)) == (Verdict.RIG, 2)


def test_a_test_that_fails_without_a_mutant_decides_nothing(tmp_path: Path) -> None:
    trials = Scripted(
        {
            "t.py::t0": tried("t.py::t0", "failed", "AssertionError: always"),
            "t.py::t1": tried("t.py::t1", "failed", "AssertionError: lost"),
        },
        {"t.py::t0": tried("t.py::t0", "failed", "AssertionError: always")},
    )
    found, judge = judged_by(trials, tmp_path)
    assert (found.verdict, found.test) == (Verdict.KILLED, "t.py::t1")
    assert judge.unfit == {"t.py::t0": "failed: AssertionError: always"}


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("AssertionError: 3 were lost\nassert 3 == 0", "AssertionError: 3 were lost"),
        ("NotHeld: `a\n  b\nc` ended\nlast lines", "NotHeld: `a b c` ended"),
        ("NotHeld: `a` ended\n`b`", "NotHeld: `a` ended"),
        ("", "no message"),
    ],
)
def test_line_of_a_message(message: str, line: str) -> None:
    assert first_line(tried("t.py::t", "failed", message)) == line


def test_the_patch_is_kept_for_people(tmp_path: Path) -> None:
    judged_by(Scripted({}), tmp_path)
    (path,) = (tmp_path / "cache/store/mutants/patches").iterdir()
    assert path.name == f"{candidate().id}.patch"
    assert path.read_text() == candidate().patch


def test_drivers_of_a_mutant_are_not_kept(tmp_path: Path) -> None:
    _, judge = judged_by(Scripted({}), tmp_path)
    (path,) = (tmp_path / "cache/store/mutants/patches").iterdir()
    cache = Cache(tmp_path / "cache")
    for key in (driver_patch(path).key, "another"):
        cache.entry("drivers", {"patches": ["series", key]}, lambda made: None, Progress())
    judge.judge(candidate())
    assert cache.inputs("drivers") == [{"patches": ["series", "another"]}]


# -- the report


def survey(*verdicts: Verdict, stale: tuple[str, ...] = ()) -> Survey:
    found = all_of()
    kinds = Counter({Kind.MUTANT: 3, Kind.SAME: 1})
    sample = Sample(tuple(found), {}, kinds, tuple(found), 8, stale)
    each = zip(found, verdicts, strict=False)
    judged = tuple(
        Judged(one, verdict, "t.py::t", "AssertionError: lost", 2, 5, 1.25) for one, verdict in each
    )
    return Survey(sample, judged, 90.0, {"t.py::odd": "failed: always"})


def test_score_is_of_what_is_not_equivalent() -> None:
    found = survey(Verdict.KILLED, Verdict.HUNG, Verdict.SURVIVED, Verdict.RIG, Verdict.EQUIVALENT)
    assert (found.counted, found.score) == (4, 0.5)
    assert survey(Verdict.EQUIVALENT).score == 1.0


@pytest.mark.parametrize(
    ("verdicts", "stale", "number"),
    [
        ((Verdict.KILLED, Verdict.HUNG, Verdict.EQUIVALENT), (), EXIT_HELD),
        ((Verdict.KILLED, Verdict.SURVIVED, Verdict.RIG), (), EXIT_NOT_HELD),
        ((Verdict.KILLED,), ("gone",), EXIT_NOT_HELD),
        ((Verdict.KILLED, Verdict.RIG), (), EXIT_RIG),
    ],
)
def test_exit_status(verdicts: tuple[Verdict, ...], stale: tuple[str, ...], number: int) -> None:
    assert sampled.status(survey(*verdicts, stale=stale)) == number


def test_json() -> None:
    made = sampled.as_json(survey(Verdict.KILLED, Verdict.SURVIVED))
    json.dumps(made)
    assert (made["score"], made["counted"]) == (0.5, 2)
    assert isinstance(made["mutants"], list)
    first = made["mutants"][0]
    assert first == {
        "mutant": all_of()[0].id,
        "file": "xen-blkfront.c",
        "line": 3,
        "function": "one_of",
        "operator": "condition negated",
        "diff": ["-\tif (a)", "+\tif (!(a))"],
        "verdict": "killed",
        "test": "t.py::t",
        "message": "AssertionError: lost",
        "passed": 2,
        "reaching": 5,
        "seconds": 1.2,
    }


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    sampled._show(survey(Verdict.KILLED, Verdict.SURVIVED, Verdict.HUNG))
    printed = capsys.readouterr()
    for part in (
        "killed  ",
        "xen-blkfront.c:3",
        "AssertionError: lost",
        "1 survived:",
        "\n      +\tif ((a) || 1)\n",
        "1 noticed by the time limit of a test alone:",
        "score 66.7 %: 2 of 3 noticed (1 killed, 1 hung, 1 survived) in 2 min",
        "not taken: 1 same object code, 0 same object code as another, 0 does not compile",
    ):
        assert part in printed.out, part
    assert "t.py::odd fails without a mutant, and decides nothing" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sample", "3", "--baseline"], "--directory and --baseline are for mutants that are fi"),
        (["--sample", "3", "--tests", "tests/nowhere"], "pytest finds no tests in tests/nowhere"),
    ],
)
def test_what_cannot_be_asked(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mutants", *arguments]) == EXIT_INPUT
    assert words in capsys.readouterr().err
