"""Mutants: their headers, when one counts as killed, which outcomes are kept."""

from __future__ import annotations

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emu import cli
from emu.commands.mutants import as_json, status
from emu.errors import EXIT_HELD, EXIT_INPUT, EXIT_NOT_HELD, EXIT_RIG, InputError, RigError
from emu.images.cache import Cache
from emu.progress import Progress
from emu.suite import mutants
from emu.suite.mutants import Judged, Mutant, MutantsWish, Verdict, decide
from emu.suite.testruns import PYTEST, Outcome, Runs, Trial, diff_digest, read_report

HEAD = """The front end drops what does not fit.

Real drivers did, and this text is for people.

Caught-by: tests/unit/test_mutants.py::test_a[no grant]
Caught-by: tests/unit/test_mutants.py::test_b
Says: \\d+ requests were lost
Kernel: lab-6.1

"""
DIFF = """--- a/drivers/block/xen-blkfront.c
+++ b/drivers/block/xen-blkfront.c
@@ -1,2 +1,1 @@
 one
-two
"""
NAME = "migration-dropped.patch"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mutants"
    made.mkdir()
    return made


def write(folder: Path, text: str = HEAD + DIFF, name: str = NAME) -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- the header


def test_header(folder: Path) -> None:
    mutant = mutants.read(write(folder))
    assert mutant.name == "migration-dropped"
    assert mutant.flaw == "The front end drops what does not fit."
    assert mutant.caught_by == (
        "tests/unit/test_mutants.py::test_a[no grant]",
        "tests/unit/test_mutants.py::test_b",
    )
    assert mutant.says.search("then 12 requests were lost")
    assert (mutant.kernel, mutant.ends) == ("lab-6.1", ("front",))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Says: \\d+ requests were lost\n", "", "has Says: 0 times"),
        ("Says: \\d+ requests were lost\n", "Says: a\nSays: b\n", "has Says: 2 times"),
        ("Says: \\d+ requests were lost\n", "Says: (a\n", "is no regular expression"),
        ("Says: \\d+ requests were lost\n", "Says:\n", "has Says: 1 times"),
        ("Kernel: ", "Kernle: ", ":8: unknown field Kernle"),
        (
            "test_mutants.py::test_b",
            "test_nowhere.py::test_b",
            "there is no test tests/unit/test_n",
        ),
        ("test_mutants.py::test_b", "test_mutants.py", "there is no test tests/unit/test_mut"),
        ("The front end drops what does not fit.\n", "\n", "the first line has to name the flaw"),
        (DIFF, "", "changes nothing"),
    ],
)
def test_header_is_refused(folder: Path, old: str, new: str, words: str) -> None:
    text = HEAD + DIFF
    assert old in text
    with pytest.raises(InputError, match=re.escape(words)):
        mutants.read(write(folder, text.replace(old, new, 1)))


def test_name_without_a_subject_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="a name begins with one of negotiation, migration, gran"):
        mutants.read(write(folder, name="dropped.patch"))


def test_mutants_are_chosen_by_name_and_pattern(folder: Path) -> None:
    for name in ("grants-a", "grants-b", "migration-a"):
        write(folder, name=f"{name}.patch")

    def found(*names: str) -> list[str]:
        return [one.name for one in mutants.find(MutantsWish(folder, names))]

    assert found() == ["grants-a", "grants-b", "migration-a"]
    assert found("grants-*") == ["grants-a", "grants-b"]
    assert found("*-a", "grants-a") == ["grants-a", "migration-a"]
    with pytest.raises(InputError, match="there is no mutant grants-c in "):
        found("grants-a", "grants-c")
    with pytest.raises(InputError, match="holds no mutants"):
        mutants.find(MutantsWish(folder / "nowhere"))


def test_our_mutants_have_a_flaw_each_and_existing_tests() -> None:
    ours = mutants.find(MutantsWish(mutants.own_mutants()))
    assert len({one.flaw for one in ours}) == len(ours) >= 28
    for subject in mutants.SUBJECTS:
        assert sum(one.name.startswith(subject) for one in ours) >= 8
    for one in ours:
        for node in one.caught_by:
            file, _, test = node.partition("::")
            assert f"def {test.partition('[')[0]}(" in Path(file).read_text(), f"{one.name}: {node}"
        assert one.ends, f"{one.name} changes no driver"


# -- the verdict

SAYS = re.compile(r"\d+ requests were lost")


@pytest.mark.parametrize(
    ("outcome", "verdict", "line"),
    [
        (
            Outcome("failed", ("AssertionError: 3 requests were lost\nassert 3 == 0",), 1.0),
            Verdict.KILLED,
            "AssertionError: 3 requests were lost",
        ),
        (
            Outcome(
                "failed", ("assert not x", "E\n  in all 3 requests were lost, it reports\n"), 1.0
            ),
            Verdict.KILLED,
            "in all 3 requests were lost, it reports",
        ),
        (Outcome("passed", (), 1.0), Verdict.SURVIVED, "the test passed"),
        (
            Outcome("failed", ("assert 3 == 0",), 1.0),
            Verdict.SURVIVED,
            "failed without naming the flaw: assert 3 == 0",
        ),
        (
            Outcome("failed", ("Failed: Timeout (>600.0s) from pytest-timeout.",), 600.0),
            Verdict.SURVIVED,
            "failed without naming the flaw: Failed: Timeout (>600.0s) from pytest-timeout.",
        ),
        (
            Outcome("error", ("RigError: 3 requests were lost",), 1.0),
            Verdict.RIG,
            "RigError: 3 requests were lost",
        ),
        (Outcome("skipped", ("no KVM",), 0.0), Verdict.SPOILT, "skipped: no KVM"),
    ],
)
def test_verdict(outcome: Outcome, verdict: Verdict, line: str) -> None:
    assert decide(outcome, SAYS) == (verdict, line)


def judged(verdict: Verdict) -> Judged:
    mutant = Mutant(Path("grants-a.patch"), "A flaw.", ("t.py::t",), SAYS, "lab-6.1", ("back",))
    return Judged(mutant, verdict, "t.py::t", "a line", 1.25)


@pytest.mark.parametrize(
    ("verdicts", "number"),
    [
        ((Verdict.KILLED, Verdict.KILLED), EXIT_HELD),
        ((Verdict.KILLED, Verdict.SURVIVED), EXIT_NOT_HELD),
        ((Verdict.SPOILT, Verdict.RIG, Verdict.SURVIVED), EXIT_NOT_HELD),
        ((Verdict.RIG, Verdict.SPOILT), EXIT_INPUT),
        ((Verdict.RIG, Verdict.KILLED), EXIT_RIG),
    ],
)
def test_exit_status(verdicts: tuple[Verdict, ...], number: int) -> None:
    assert status([judged(one) for one in verdicts]) == number


def test_json() -> None:
    assert as_json(judged(Verdict.SURVIVED)) == {
        "mutant": "grants-a",
        "flaw": "A flaw.",
        "drivers": ("back",),
        "verdict": "survived",
        "test": "t.py::t",
        "message": "a line",
        "seconds": 1.2,
    }


# -- the report log of a real pytest

REPORTED = """
import pytest
from emu.errors import RigError

@pytest.fixture
def rig():
    raise RigError("no room")

@pytest.fixture
def breaks():
    yield
    raise RigError("no end")

def test_passes(): pass

def test_fails():
    lost = 3
    assert lost == 0, f"{lost} requests were lost\\n  since then"

def test_fails_as_a_consequence():
    try:
        raise OSError("12 requests were lost")
    except OSError as error:
        raise ValueError("no sum") from error

def test_needs_a_rig(rig): pass

def test_meets_a_broken_rig():
    raise RigError("QEMU ended")

def test_fails_and_breaks(breaks):
    assert not 'requests were lost', "another word"

def test_is_skipped():
    pytest.skip("no KVM")

def test_ends_at_once():
    pytest.fail("in short", pytrace=False)
"""


@pytest.fixture(scope="module")
def report_log(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("reported")
    (folder / "test_reported.py").write_text(REPORTED)
    (folder / "pytest.ini").touch()
    command = [*PYTEST, "-p", "no:cacheprovider", "--report-log=log"]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    return (folder / "log").read_text().splitlines()


@pytest.mark.parametrize(
    ("test", "kind", "messages"),
    [
        ("passes", "passed", ()),
        (
            "fails",
            "failed",
            ("AssertionError: 3 requests were lost\nsince then\nassert 3 == 0",),
        ),
        (
            "fails_as_a_consequence",
            "failed",
            ("OSError: 12 requests were lost\nValueError: no sum",),
        ),
        ("needs_a_rig", "error", ("emu.errors.RigError: no room",)),
        ("meets_a_broken_rig", "error", ("emu.errors.RigError: QEMU ended",)),
        (
            "fails_and_breaks",
            "failed",
            ("AssertionError: another word\nassert not 'requests were lost'",),
        ),
        ("is_skipped", "skipped", ("no KVM",)),
        ("ends_at_once", "failed", ("Failed: in short",)),
    ],
)
def test_outcome_of_a_report(
    report_log: list[str], test: str, kind: str, messages: tuple[str, ...]
) -> None:
    node = f'"test_reported.py::test_{test}"'
    outcome = read_report(line for line in report_log if node in line)
    assert outcome is not None
    assert (outcome.kind, outcome.messages) == (kind, messages)
    assert 0 <= outcome.seconds < 10


def test_report_of_no_test(report_log: list[str]) -> None:
    assert read_report(line for line in report_log if "TestReport" not in line) is None


# -- what is kept, with a real pytest that boots nothing

SLEEPS = "EMU_TEST_SLEEPS"
OWN = "tests/unit/test_mutants.py::test_exit_status"


def test_outcome_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache")
    runs = Runs(cache)
    assert runs.known(Trial(OWN)) is None
    outcome = runs.outcome(Trial(OWN), Progress())
    assert (outcome.kind, outcome.messages) == ("passed", ())
    monkeypatch.setattr(Runs, "_run", lambda self, test: pytest.fail("was run again"))
    assert Runs(cache).outcome(Trial(OWN), Progress()) == outcome
    assert Runs(cache, again=True).known(Trial(OWN)) is None


def test_outcome_depends_on_the_diff(tmp_path: Path, folder: Path) -> None:
    """And not on the text above it."""
    first = write(folder)
    runs = Runs(Cache(tmp_path / "cache"))
    keys = [runs._inputs(Trial(OWN)), runs._inputs(Trial(OWN, first))]
    again = write(folder, HEAD.replace("lost", "gone") + DIFF)
    assert runs._inputs(Trial(OWN, again)) == keys[1] != keys[0]
    other = write(folder, HEAD + DIFF.replace("two", "three"))
    assert runs._inputs(Trial(OWN, other)) != keys[1]
    assert runs._inputs(Trial("tests/unit/test_cli.py::test_x")) != keys[0]


def test_rig_error_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(Cache(tmp_path / "cache"))
    error = Outcome("error", ("RigError: no room",), 0.1)
    monkeypatch.setattr(Runs, "_run", lambda self, test: error)
    assert runs.outcome(Trial(OWN), Progress()) == error
    assert runs.known(Trial(OWN)) is None


def test_unknown_test_is_a_rig_error(tmp_path: Path) -> None:
    runs = Runs(Cache(tmp_path / "cache"))
    with pytest.raises(RigError, match=r"pytest (did not run|ended with status)"):
        runs.outcome(Trial("tests/unit/test_mutants.py::test_nowhere"), Progress())


def test_stopped_runs_start_nothing(tmp_path: Path) -> None:
    runs = Runs(Cache(tmp_path / "cache"))
    runs.stop()
    with pytest.raises(RigError, match="interrupted"):
        runs.outcome(Trial(OWN), Progress())


def test_that_sleeps() -> None:
    """The next test interrupts this one; on its own it does nothing."""
    if SLEEPS in os.environ:
        Path(os.environ[SLEEPS]).touch()
        time.sleep(120)


def test_interruption_ends_running_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    monkeypatch.setenv(SLEEPS, str(started))
    runs = Runs(Cache(tmp_path / "cache"))
    asleep = Trial("tests/unit/test_mutants.py::test_that_sleeps")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runs.outcome, asleep, Progress())
        until = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < until, "pytest did not come to the test"
            time.sleep(0.05)
        (process,) = runs._running
        runs.stop()
        with pytest.raises(RigError, match="interrupted"):
            running.result(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert runs.known(asleep) is None


def test_diff_digest_ignores_the_header(folder: Path) -> None:
    one = write(folder)
    two = write(folder, "Another.\n\n" + DIFF, "grants-b.patch")
    assert diff_digest(one) == diff_digest(two)


# -- the command


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mutants", "--list", "nobody"]) == EXIT_INPUT
    assert "there is no mutant nobody in" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mutants", "--list", "negotiation-stale-keys"]) == EXIT_HELD
    output = capsys.readouterr().out
    assert "test_series_again.py::test_keys_of_an_earlier_kernel_are_replaced[pages-1]" in output
