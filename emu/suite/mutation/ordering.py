"""Which tests judge a mutant, and in which order: the likeliest to notice for their time first.

A test's chance to notice is estimated from what it did to other mutants: of the function, of
the file, of all. Where nothing is known yet, a test that reaches little of the drivers is taken
for one that looks closely at what it reaches. Of tests that differ in their parameters alone the
next one has half the chance of the one before.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emu.suite.mutation.candidates import Candidate

START = 0.5
"""Seconds that a test costs whatever it does."""
_LIKE_ONES_BEFORE = 0.5
_WEIGHT = 2.0
"""How many mutants of one place weigh as much as what is known of the wider place."""
_LEAST, _MOST = 0.05, 0.4
"""The chance of a test that nothing is known of: if it reaches all of the drivers, or next to
nothing."""


@dataclass(frozen=True)
class Reaching:
    """A test that reaches a line: its pytest id, how many seconds it takes, and which share of
    the drivers' lines it reaches (0 to 1).
    """

    node: str
    seconds: float
    share: float = 0.5

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

    def add(self, candidate: Candidate, passed: Iterable[str], failed: str | None) -> None:
        """That a mutant passed these tests, and was noticed by that one."""
        with self._lock:
            for node in passed:
                self._ran.update(_places(candidate, node))
            if failed is not None:
                self._ran.update(_places(candidate, failed))
                self._noticed.update(_places(candidate, failed))

    def chance(self, test: Reaching, candidate: Candidate) -> float:
        """The chance that a test notices a mutant, from 0 to 1."""
        found = _MOST - (_MOST - _LEAST) * min(max(test.share, 0.0), 1.0)
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
    found: list[Reaching] = []
    while left:
        best = max(left, key=lambda test: worth[test] * _LIKE_ONES_BEFORE ** before[test.function])
        left.remove(best)
        before[best.function] += 1
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
