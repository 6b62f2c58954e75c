"""Mutants made by machine: which tests judge them, in which order, and what counts as noticed."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emu import cli
from emu.commands import sampled
from emu.errors import EXIT_HELD, EXIT_INPUT, EXIT_NOT_HELD, EXIT_RIG, RigError
from emu.images.cache import Cache
from emu.images.driver_patches import driver_patch
from emu.progress import Progress
from emu.suite.coverage import Coverage
from emu.suite.gcov import FileCounts
from emu.suite.mutation import compiling
from emu.suite.mutation.candidates import Candidate, candidates
from emu.suite.mutation.compiling import Compiled, Compiler, Kind
from emu.suite.mutation.judge import SOUND, Judge, Judged, Verdict, first_line
from emu.suite.mutation.ordering import History, Reaching, ordered, within
from emu.suite.mutation.reach import Covered
from emu.suite.mutation.source import Source
from emu.suite.mutation.survey import Sample, Survey
from emu.suite.mutation.trials import Trials, Tried
from emu.suite.records import FileOutline, Outline, Reached, Record
from emu.suite.testruns import Kind as Word
from emu.suite.testruns import Outcome

FILE = "drivers/block/xen-blkfront.c"
TEXT = """\
static int one_of(int a)
{
	if (a)
		return 1;
	g(a);
	return 0;
}

static void other(void)
{
	h(b);
}
"""


def all_of(text: str = TEXT) -> list[Candidate]:
    return candidates([Source(FILE, text.encode())])


def candidate(operator: str = "condition negated", text: str = TEXT) -> Candidate:
    return next(one for one in all_of(text) if one.operator == operator)


# -- the order of tests


def names(tests: Sequence[Reaching]) -> list[str]:
    return [one.node for one in tests]


def test_quick_tests_that_reach_little_come_first() -> None:
    tests = [
        Reaching("t.py::slow", 20.0, 0.1),
        Reaching("t.py::quick", 2.0, 0.1),
        Reaching("t.py::of_everything", 2.0, 0.9),
    ]
    found = ordered(tests, candidate(), History())
    assert names(found) == ["t.py::quick", "t.py::of_everything", "t.py::slow"]


def test_tests_that_reach_what_few_others_do_come_first() -> None:
    tests = [Reaching("t.py::usual", 2.0, 0.5, 0.1), Reaching("t.py::rare", 2.2, 0.5, 1.0)]
    assert names(ordered(tests, candidate(), History())) == ["t.py::rare", "t.py::usual"]


def test_tests_that_reach_the_same_do_not_crowd_out_others() -> None:
    alike: dict[object, float] = {"a": 1.0, "b": 1.0}
    tests = [Reaching(f"t.py::like{n}", 1.0, 0.3, 0.5, alike) for n in range(4)]
    other = Reaching("t.py::other", 2.0, 0.3, 0.5, {"c": 0.5})
    found = names(ordered([*tests, other], candidate(), History()))
    assert found.index("t.py::other") == 1, found


def test_tests_that_noticed_others_come_earlier() -> None:
    history = History()
    tests = [Reaching(f"t.py::t{n}", 2.0 + n / 10, 0.3) for n in range(4)]
    assert names(ordered(tests, candidate(), history))[0] == "t.py::t0"
    history.add(candidate(), ["t.py::t0", "t.py::t1"], ["t.py::t3"])
    assert names(ordered(tests, candidate(), history)) == [
        "t.py::t3",
        "t.py::t2",
        "t.py::t0",
        "t.py::t1",
    ]
    elsewhere = next(one for one in all_of() if one.function == "other")
    assert history.chance(tests[3], candidate()) > history.chance(tests[3], elsewhere)
    assert history.chance(tests[3], elsewhere) > history.chance(tests[2], elsewhere)


def test_tests_that_differ_in_a_parameter_do_not_crowd_out_others() -> None:
    tests = [Reaching(f"t.py::many[{n}]", 1.0, 0.3) for n in range(6)]
    found = names(ordered([*tests, Reaching("t.py::another", 3.0, 0.3)], candidate(), History()))
    assert found.index("t.py::another") <= 2


def test_tests_fit_into_the_time() -> None:
    tests = [Reaching(f"t.py::t{n}", 4.5) for n in range(10)]
    assert len(within(tests, 25.0)) == 5
    assert len(within(tests, 25.0, spent=15.0)) == 2
    assert within(tests, 25.0, spent=24.0) == ()
    assert len(within(tests, 1.0)) == 1, "a test that alone takes longer is run all the same"


# -- which tests reach a line


def covered(text: str, counted: Sequence[int] = (3, 5, 6, 11), **reached: Sequence[int]) -> Covered:
    """Coverage of a source in which these lines have counters."""
    lines, code = tuple(text.splitlines()), frozenset(counted)
    functions = {"one_of": (1, 7), "other": (9, 12)}
    outline = Outline("b", "now", {"xen-blkfront.c": FileOutline(lines, code, {}, functions)})
    records = []
    for name, its in reached.items():
        counts = FileCounts(dict.fromkeys(its, 1), {})
        part = Reached("b", "now", {"xen-blkfront.c": counts})
        records.append(Record(f"t.py::{name}", "passed", 1.0, "i", (part,)))
    return Covered(Coverage(outline, records))


def test_tests_of_a_line() -> None:
    reach = covered(TEXT, both=(3, 5, 11), first=(3,))
    by_line = {one.line: reach.tests_of(one) for one in all_of()}
    assert {line: names(its) for line, its in by_line.items()} == {
        3: ["t.py::both", "t.py::first"],
        4: ["t.py::both", "t.py::first"],  # no counter: that of the line before
        5: ["t.py::both"],
        6: [],
        11: ["t.py::both"],
    }
    assert [one.share for one in by_line[3]] == [0.75, 0.25]
    assert [one.rare for one in by_line[3]] == [1.0, pytest.approx(0.5 / 1.5)]


def test_tests_of_a_line_that_has_moved() -> None:
    reach = covered(TEXT, one=(3, 5, 11))
    later = TEXT.replace("\tg(a);\n", "\tk(a);\n\tg(a);\n").replace("h(b)", "h(c)")
    by_line = {one.line: names(reach.tests_of(one)) for one in all_of(later)}
    assert by_line[6] == ["t.py::one"], "the line that was the fifth"
    assert by_line[5] == [], "a new line"
    assert by_line[12] == [], "a line that has changed"
    assert reach.is_of(Source(FILE, TEXT.encode()))
    assert not reach.is_of(Source(FILE, later.encode()))


def test_line_without_a_counter_is_that_of_what_is_done_before_it() -> None:
    """Not that of the last line before it, which leaves the function."""
    text = TEXT.replace("\tg(a);\n", "").replace("\tif (a)\n", "\ta = g(a);\n\tif (a)\n")
    reach = covered(text, (3, 4, 5), one=(3, 4, 5), other=(3, 4))
    tests = [names(reach.tests_of(one)) for one in all_of(text) if one.line == 6]
    assert tests == [["t.py::one", "t.py::other"]], text


def test_first_line_of_a_function_is_not_that_of_the_one_before() -> None:
    """Its counter is gone: no other function's test is taken for one that reaches it."""
    reach = covered(TEXT, (3, 5, 6), one=(3, 5, 6))
    assert names(reach.tests_of(next(one for one in all_of() if one.line == 11))) == []


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


# -- trials, with a real pytest that boots nothing

HERE = "tests/unit/test_mutation_judged.py"
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
