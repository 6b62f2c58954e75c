"""`emu mutants`: does the suite catch known flaws? Drivers with one flaw each, and its tests.

A mutant is a patch on top of the series, in `tests/mutants/`, with a header:

    One sentence that names the flaw.

    Caught-by: tests/system/test_x.py::test_name[case]      once or more
    Says: a regular expression
    Kernel: lab-6.1                                         the tests' kernel (debian-6.1)

    --- a/drivers/block/…

It is killed when each of these tests passes on the series, and fails on the mutant with a
message that matches `Says`: one that names the flaw.
"""

from __future__ import annotations

import enum
import fnmatch
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.errors import EmuError, InputError
from emu.images import modules
from emu.images.context import BuildContext
from emu.images.driver_patches import driver_patch
from emu.images.kernels import get_kernel
from emu.progress import Progress
from emu.suite.testruns import Outcome, Runs, Trial

SUBJECTS = ("negotiation", "migration", "grants", "adversary", "data", "failures")
KERNEL = "debian-6.1"
_FIELD = re.compile(r"(Caught-by|Says|Kernel): *(.*)")
_LIKE_A_FIELD = re.compile(r"[A-Z][a-z]+(-[a-z]+)?: ")
_FILE = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
_ABOUT_DRIVERS = {"xen-blkfront": "front", "xen-blkback": "back"}


class Verdict(enum.Enum):
    """The result for a mutant; `SPOILT`: the mutant or its test is broken, `RIG`: the rig is."""

    KILLED = "killed"
    SURVIVED = "survived"
    SPOILT = "error"
    RIG = "rig error"


@dataclass(frozen=True)
class Mutant:
    """A flaw: its patch, a sentence, the tests that catch it, a pattern of their message."""

    path: Path
    flaw: str
    caught_by: tuple[str, ...]
    says: re.Pattern[str]
    kernel: str
    ends: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its file's name without the suffix."""
        return self.path.stem


@dataclass(frozen=True)
class Judged:
    """A mutant and its verdict, with the deciding test and the line of its message."""

    mutant: Mutant
    verdict: Verdict
    test: str
    line: str
    seconds: float


@dataclass(frozen=True)
class MutantsWish:
    """Which mutants of a directory to run, by names or shell patterns (none: all).

    `again` ignores kept outcomes; `baseline` only checks that the tests pass on the series.
    """

    directory: Path
    names: tuple[str, ...] = ()
    jobs: int = 1
    again: bool = False
    baseline: bool = False


def own_mutants() -> Path:
    """The directory of our mutants. Raises InputError where there is no checkout."""
    return paths.checkout("emu mutants") / "tests/mutants"


def find(wish: MutantsWish) -> list[Mutant]:
    """The chosen mutants, by name. Raises InputError for a name that matches none and for an
    incomplete header.
    """
    files = sorted(wish.directory.glob("*.patch")) if wish.directory.is_dir() else []
    if not files:
        raise InputError(f"{wish.directory} holds no mutants (*.patch)")
    for name in wish.names:
        if not any(fnmatch.fnmatch(path.stem, name) for path in files):
            raise InputError(
                f"there is no mutant {name} in {wish.directory}", hint="emu mutants --list"
            )
    asked = wish.names or ("*",)
    chosen = [path for path in files if any(fnmatch.fnmatch(path.stem, one) for one in asked)]
    return [read(path) for path in chosen]


def read(path: Path) -> Mutant:
    """Parse one patch's header. Raises InputError that names file and line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fields: dict[str, list[str]] = {"Caught-by": [], "Says": [], "Kernel": []}
    for number, line in enumerate(lines, 1):
        if line.startswith(("diff ", "--- a/")):
            break
        if found := _FIELD.fullmatch(line):
            fields[found[1]].append(found[2].strip())
        elif _LIKE_A_FIELD.match(line) and number > 1:
            raise InputError(f"{path.name}:{number}: unknown field {line.partition(':')[0]}")
    else:
        raise InputError(f"{path.name} changes nothing: it has no line `--- a/…`")
    flaw = lines[0].strip()
    if not flaw or _FIELD.fullmatch(flaw):
        raise InputError(f"{path.name}: the first line has to name the flaw")
    if path.name.partition("-")[0] not in SUBJECTS:
        raise InputError(f"{path.name}: a name begins with one of {', '.join(SUBJECTS)}")
    for name, least, most in (("Caught-by", 1, 9), ("Says", 1, 1), ("Kernel", 0, 1)):
        if not least <= len(fields[name]) <= most or "" in fields[name]:
            raise InputError(f"{path.name}: the header has {name}: {len(fields[name])} times")
    for node in fields["Caught-by"]:
        file, _, test = node.partition("::")
        if not test or not (paths.checkout() / file).is_file():
            raise InputError(f"{path.name}: there is no test {node}")
    try:
        says = re.compile(fields["Says"][0])
    except re.error as error:
        raise InputError(f"{path.name}: Says: is no regular expression: {error}") from None
    changed = _FILE.findall("\n".join(lines))
    ends = tuple(
        end for word, end in _ABOUT_DRIVERS.items() if any(word in file for file in changed)
    )
    kernel = (fields["Kernel"] or [KERNEL])[0]
    return Mutant(path, flaw, tuple(fields["Caught-by"]), says, kernel, ends)


def perform(
    wish: MutantsWish, context: BuildContext, report: Callable[[Judged], None]
) -> list[Judged]:
    """Judge the chosen mutants, in order; `report` is called with each as it is done.

    Raises InputError as `find`, before anything runs.
    """
    mutants = find(wish)
    runs = Runs(context.cache, again=wish.again)
    done: dict[Mutant, Judged] = {}
    with (
        context.progress.stage(f"{len(mutants)} mutants"),
        ThreadPoolExecutor(max(1, wish.jobs)) as pool,
    ):
        try:
            left = {pool.submit(_judge, one, wish, runs, context) for one in mutants}
            while left:
                ended, left = wait(left, return_when=FIRST_COMPLETED)
                for future in ended:
                    judged = future.result()
                    done[judged.mutant] = judged
                    report(judged)
                    context.progress.tick(
                        f"{len(done)} of {len(mutants)} done", len(done), len(mutants)
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runs.stop()
            raise
    return [done[one] for one in mutants]


def _judge(mutant: Mutant, wish: MutantsWish, runs: Runs, context: BuildContext) -> Judged:
    began = time.monotonic()

    def judged(verdict: Verdict, test: str, line: str) -> Judged:
        return Judged(mutant, verdict, test, line, time.monotonic() - began)

    quiet = Progress()  # several build at once, and a screen has one line
    try:
        own = BuildContext(context.cache)
        kernel = get_kernel(mutant.kernel, own)
        patches = [*modules.patches_of(kernel, own), driver_patch(mutant.path)]
        context.progress.tick(f"building {mutant.name}")
        modules.build_drivers(kernel, patches, own)
        decided = judged(Verdict.KILLED, "", "")
        for node in mutant.caught_by:
            context.progress.tick(f"{node} on the series")
            sound = runs.outcome(Trial(node), quiet)
            if sound.kind != "passed":
                verdict = Verdict.RIG if sound.kind == "error" else Verdict.SPOILT
                words = f"{sound.kind} without the flaw: {_first_line(sound.messages)}"
                return judged(verdict, node, words)
            if wish.baseline:
                decided = judged(Verdict.KILLED, node, "passes on the series")
                continue
            context.progress.tick(f"{node} on {mutant.name}")
            verdict, line = decide(runs.outcome(Trial(node, mutant.path), quiet), mutant.says)
            decided = judged(verdict, node, line)
            if verdict is not Verdict.KILLED:
                break
        return decided
    except InputError as error:
        return judged(Verdict.SPOILT, "", str(error))
    except EmuError as error:
        return judged(Verdict.RIG, "", str(error))


def decide(outcome: Outcome, says: re.Pattern[str]) -> tuple[Verdict, str]:
    """The verdict of one test on one mutant, and the line that decided.

    A test that failed without naming the flaw has not caught it: it may have failed for
    another reason.
    """
    if outcome.kind == "error":
        return Verdict.RIG, _first_line(outcome.messages)
    if outcome.kind == "skipped":
        return Verdict.SPOILT, f"skipped: {_first_line(outcome.messages)}"
    if outcome.kind == "passed":
        return Verdict.SURVIVED, "the test passed"
    for message in outcome.messages:
        if found := says.search(message):
            start = message.rfind("\n", 0, found.start()) + 1
            return Verdict.KILLED, message[start:].split("\n", 1)[0].strip()
    return Verdict.SURVIVED, f"failed without naming the flaw: {_first_line(outcome.messages)}"


def _first_line(messages: Sequence[str]) -> str:
    return "; ".join(message.strip().split("\n", 1)[0] for message in messages) or "no message"
