"""Is a mutant noticed? The tests that reach it, the likeliest first, up to the first that fails."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from emu.errors import EmuError
from emu.images.cache import Cache
from emu.images.driver_patches import driver_patch
from emu.suite.mutation.candidates import Candidate
from emu.suite.mutation.compiling import STORE
from emu.suite.mutation.ordering import START, History, Reaching, ordered, within
from emu.suite.mutation.reach import Reach
from emu.suite.mutation.trials import Trials, Tried

SOUND = "sound"
"""The name under which outcomes without a mutant are kept."""
_BUILT = "drivers"
"""The kind of the cache's entries of drivers (emu.images.modules)."""
_TRIES = 2
"""A test that fails without a mutant is tried again: it may have had too little time."""


class Verdict(enum.Enum):
    """What became of a mutant. `HUNG`: killed, by the time limit of a whole test; `RIG`: the rig
    broke before a test noticed it, which is no verdict of the tests.
    """

    KILLED = "killed"
    HUNG = "hung"
    SURVIVED = "survived"
    RIG = "rig error"
    EQUIVALENT = "equivalent"


@dataclass(frozen=True)
class Judged:
    """A mutant and its verdict: the test that decided, the first line of its message, how many
    of the tests that reach it it has passed, and seconds.
    """

    candidate: Candidate
    verdict: Verdict
    test: str = ""
    line: str = ""
    passed: int = 0
    reaching: int = 0
    seconds: float = 0.0


class Judge:
    """Judges mutants by the tests that reach them, each for `limit` seconds of tests at most.

    Thread-safe. `unfit` has the tests that fail without a mutant, with their message: they
    decide nothing.
    """

    def __init__(self, reach: Reach, trials: Trials, cache: Cache, limit: float) -> None:
        self.unfit: dict[str, str] = {}
        self._reach, self._trials, self._limit = reach, trials, limit
        self._patches = cache.store(STORE) / "patches"
        self._patches.mkdir(exist_ok=True)
        self._cache = cache
        self._history = History()
        self._one_at_a_time = Lock()

    def remember(self, candidates: Sequence[Candidate]) -> None:
        """Learn from the outcomes that are kept of these mutants which tests notice what.

        What a test did before it or the rig changed says as much of what it looks at.
        """
        for one in candidates:
            self._learn(one, self._trials.ever(one.id))

    def judge(self, candidate: Candidate) -> Judged:
        """The verdict on one mutant. Its drivers are not kept: they are built in seconds."""
        try:
            return self._judge(candidate)
        finally:
            key = driver_patch(self._patch(candidate)).key
            for inputs in self._cache.inputs(_BUILT):
                patches = inputs.get("patches")
                if isinstance(patches, list) and key in patches:
                    self._cache.discard(_BUILT, inputs)

    def _judge(self, candidate: Candidate) -> Judged:
        began = time.monotonic()
        reaching = self._reach.tests_of(candidate)

        def judged(verdict: Verdict, passed: int, test: str = "", line: str = "") -> Judged:
            seconds = time.monotonic() - began
            return Judged(candidate, verdict, test, line, passed, len(reaching), seconds)

        if not reaching:
            return judged(Verdict.SURVIVED, 0, line="no test reaches it")
        patch = self._patch(candidate)
        tests = {one.node: one for one in reaching}
        passed: dict[str, Tried] = {}
        broken: dict[str, Tried] = {}
        found = self._known(candidate, patch)
        try:
            while True:
                for one in found:
                    if not one.noticed:
                        (broken if one.outcome.kind == "error" else passed)[one.node] = one
                    elif self._is_sound(tests[one.node]):
                        verdict = Verdict.HUNG if one.hung else Verdict.KILLED
                        return judged(verdict, len(passed), one.node, first_line(one))
                if len(broken) > 1:
                    break
                out = {*passed, *broken, *self.unfit}
                left = [test for node, test in tests.items() if node not in out]
                spent = sum(tests[node].seconds + START for node in passed)
                batch = within(ordered(left, candidate, self._history), self._limit, spent)
                if not batch:
                    break
                found = self._trials.run(candidate.id, patch, batch, self._limit)
                self._learn(candidate, found)
                if not (found[-1].noticed or found[-1].outcome.kind == "error"):
                    passed.update({one.node: one for one in found})
                    break
        except EmuError as error:
            return judged(Verdict.RIG, len(passed), line=str(error))
        if broken:
            last = list(broken.values())[-1]
            return judged(Verdict.RIG, len(passed), last.node, first_line(last))
        return judged(Verdict.SURVIVED, len(passed))

    def _known(self, candidate: Candidate, patch: Path) -> list[Tried]:
        nodes = [one.node for one in self._reach.tests_of(candidate)]
        return self._trials.known(candidate.id, patch, nodes)

    def _learn(self, candidate: Candidate, found: Sequence[Tried]) -> None:
        passed = [one.node for one in found if one.outcome.kind == "passed"]
        self._history.add(candidate, passed, [one.node for one in found if one.noticed])

    def _is_sound(self, test: Reaching) -> bool:
        """Whether a test passes without a mutant."""
        with self._one_at_a_time:
            if test.node in self.unfit:
                return False
            found = self._trials.known(SOUND, None, [test.node])
            for _ in range(_TRIES):
                if found and found[0].outcome.kind == "passed":
                    return True
                found = self._trials.run(SOUND, None, [test], self._limit)
            if found[0].outcome.kind == "passed":
                return True
            self.unfit[test.node] = f"{found[0].outcome.kind}: {first_line(found[0])}"
            return False

    def _patch(self, candidate: Candidate) -> Path:
        """The mutant as a file, for pytest's option and for people."""
        path = self._patches / f"{candidate.id}.patch"
        text = candidate.patch
        if not path.is_file() or path.read_text("utf-8") != text:
            with self._cache.scratch("patch") as scratch:
                (scratch / path.name).write_text(text, "utf-8")
                (scratch / path.name).replace(path)
        return path


def first_line(tried: Tried) -> str:
    """The first line of a test's messages, with all lines of a command that it quotes."""
    return "; ".join(filter(None, map(_first_line, tried.outcome.messages))) or "no message"


def _first_line(message: str) -> str:
    line, _, rest = message.strip().partition("\n")
    if line.count("`") % 2 and "`" in rest:
        quoted, _, behind = rest.partition("`")
        line += f" {quoted}`" + behind.partition("\n")[0]
    return " ".join(line.split())
