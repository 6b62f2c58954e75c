"""Which tests judge a mutant, and in which order: the likeliest to notice for their time first.

A test's chance to notice is estimated from what it did to other mutants: of the function, of
the file, of all. Where nothing is known yet, a test that reaches little of the drivers is taken
for one that looks closely at what it reaches, and one that reaches what few others do of the
function for one that is about it. Tests that reach the same as those before them, and those that
differ from one before in their parameters alone, come later.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from emu.suite.mutation.candidates import Candidate

START = 0.5
"""Seconds that a test costs whatever it does."""
_LIKE_ONES_BEFORE = 0.5
"""What is left of a test's worth after one with other parameters."""
_NOTHING_NEW = 0.25
"""What is left of it when those before have reached all that it does."""
_WEIGHT = 4.0
"""How many mutants of one place weigh as much as what is known of the wider place."""
_LEAST, _MOST = 0.05, 0.4
"""The chance of a test that nothing is known of: if it reaches all of the drivers and only what
every other does of the function, or else the contrary of both."""


@dataclass(frozen=True)
class Reaching:
    """A test that reaches a line: its pytest id, how many seconds it takes, which share of the
    drivers' lines it reaches (0 to 1), and how much of what it reaches of the function few others
    do (0 to 1, where the test with most of that has 1). `lines` has the weights of the lines
    anywhere in the drivers that few tests reach: the fewer, the heavier.
    """

    node: str
    seconds: float
    share: float = 0.5
    rare: float = 0.5
    lines: Mapping[object, float] = field(default_factory=dict, hash=False, compare=False)

    @property
    def function(self) -> str:
        """The test without its parameters."""
        return self.node.partition("[")[0]


class History:
    """Which tests have noticed which mutants. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ran: Counter[tuple[str, ...]] = Counter()
        self._noticed: Counter[tuple[str, ...]] = Counter()

    def add(self, candidate: Candidate, passed: Iterable[str], failed: Iterable[str]) -> None:
        """That a mutant passed these tests, and was noticed by those."""
        with self._lock:
            for node in passed:
                self._ran.update(_places(candidate, node))
            for node in failed:
                self._ran.update(_places(candidate, node))
                self._noticed.update(_places(candidate, node))

    def chance(self, test: Reaching, candidate: Candidate) -> float:
        """The chance that a test notices a mutant, from 0 to 1."""
        found = _LEAST + (_MOST - _LEAST) * (1 - test.share + test.rare) / 2
        with self._lock:
            for place in reversed(_places(candidate, test.node)):
                ran, noticed = self._ran[place], self._noticed[place]
                found = (noticed + _WEIGHT * found) / (ran + _WEIGHT)
        return found


def _places(candidate: Candidate, node: str) -> tuple[tuple[str, ...], ...]:
    """A test at what a candidate changes: the function, the file, anywhere."""
    return (
        (node, candidate.file, candidate.function),
        (node, candidate.file),
        (node,),
    )


def ordered(
    tests: Sequence[Reaching], candidate: Candidate, history: History
) -> tuple[Reaching, ...]:
    """The tests, the one with the largest chance for its time first."""
    worth = {test: history.chance(test, candidate) / (test.seconds + START) for test in tests}
    left = sorted(worth, key=lambda test: (-worth[test], test.node))
    before: Counter[str] = Counter()
    reached: set[object] = set()
    found: list[Reaching] = []

    def now(test: Reaching) -> float:
        # What is no line stands for all that every test reaches.
        new = sum(weight for line, weight in test.lines.items() if line not in reached)
        new += 0.0 if found else 1.0
        share = new / (sum(test.lines.values()) + 1.0)
        like = _LIKE_ONES_BEFORE ** before[test.function]
        return worth[test] * like * (_NOTHING_NEW + (1 - _NOTHING_NEW) * share)

    while left:
        best = max(left, key=now)
        left.remove(best)
        before[best.function] += 1
        reached.update(best.lines)
        found.append(best)
    return tuple(found)


def within(tests: Sequence[Reaching], seconds: float, spent: float = 0.0) -> tuple[Reaching, ...]:
    """As many of the first tests as fit into the time, of which `spent` is gone; one at least
    if any is left.
    """
    found: list[Reaching] = []
    for test in tests:
        spent += test.seconds + START
        if spent > seconds and (found or spent - test.seconds - START > 0):
            break
        found.append(test)
    return tuple(found)
