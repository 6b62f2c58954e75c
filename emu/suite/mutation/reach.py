"""Which tests reach a candidate's line: as coverage has it, or as somebody says."""

from __future__ import annotations

import difflib
import functools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from emu import paths
from emu.errors import InputError
from emu.suite.coverage import Coverage
from emu.suite.mutation.candidates import Candidate
from emu.suite.mutation.ordering import Reaching
from emu.suite.mutation.source import Source

_UNKNOWN = 5.0
"""Seconds of a test that has not run yet."""
_FEW = 0.25
"""A line that at most this part of all tests reach is one that few do."""


class Reach(Protocol):
    """The tests that reach the lines of the drivers."""

    def tests_of(self, candidate: Candidate) -> Sequence[Reaching]:
        """The tests that reach the line that is changed."""


class Named:
    """Tests that somebody names, for every line: pytest ids, files, folders."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tests = [Reaching(node, _UNKNOWN) for node in collected(names)]

    def tests_of(self, candidate: Candidate) -> Sequence[Reaching]:
        return self._tests


class Covered:
    """The tests that reach a line under coverage.

    A line that no counter is of (a `break`, a `return 0` that the compiler made one of with
    others, the rest of a statement) is reached by whoever reaches what is done before it. Where
    the drivers have changed since, lines are found again by their text; new ones are not reached.
    """

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._moved: dict[Source, Mapping[int, int]] = {}
        self._rarities: dict[tuple[str, int], Mapping[str, float]] = {}

    def is_of(self, source: Source) -> bool:
        """Whether coverage is of this very source."""
        return _lines(source) == list(self._coverage.files[_name(source)].text)

    def tests_of(self, candidate: Candidate) -> Sequence[Reaching]:
        name, source = _name(candidate.source), candidate.source
        if name not in self._coverage.files:
            return ()
        moved = self._then(source)
        code = self._coverage.files[name].code
        here = candidate.line
        while (line := moved.get(here)) is not None and line not in code:
            if not self._is_inside(name, line):
                return ()
            here = source.before(here)
        if line is None:
            return ()
        rare = self._rare(name, line)
        tests = self._coverage.tests_reaching(name, line)
        # What is done less often is not missed by who does not do it.
        then = moved.get(candidate.then) if candidate.then is not None else None
        if then is not None:
            tests = self._coverage.tests_reaching(name, then) or tests
        return [
            Reaching(
                one.test,
                one.seconds,
                self._shares[one.test],
                rare.get(one.test, 0.0),
                self._lines[one.test],
            )
            for one in tests
        ]

    def _rare(self, name: str, line: int) -> Mapping[str, float]:
        """How much of the function around a line each test reaches that few others do."""
        its = self._coverage.places(name).at(line)
        if its is None:
            return {}
        if (name, its.first) not in self._rarities:
            sums: dict[str, float] = {}
            for one in range(its.first, its.last + 1):
                tests = self._coverage.tests_reaching(name, one)
                for test in tests:
                    sums[test.test] = sums.get(test.test, 0.0) + 1 / len(tests)
            most = max(sums.values(), default=1.0)
            self._rarities[name, its.first] = {test: part / most for test, part in sums.items()}
        return self._rarities[name, its.first]

    def _is_inside(self, name: str, line: int) -> bool:
        """Whether the line before is of the same function."""
        its = self._coverage.places(name).at(line)
        return its is not None and line > its.first

    def _then(self, source: Source) -> Mapping[int, int]:
        """The numbers that lines had when coverage was measured; none for a new one."""
        if source not in self._moved:
            now, then = _lines(source), list(self._coverage.files[_name(source)].text)
            matcher = difflib.SequenceMatcher(None, now, then, autojunk=False)
            self._moved[source] = {
                here + n + 1: there + n + 1
                for here, there, size in matcher.get_matching_blocks()
                for n in range(size)
            }
        return self._moved[source]

    @functools.cached_property
    def _lines(self) -> Mapping[str, Mapping[object, float]]:
        """The lines that few tests reach, by test, with their weights."""
        few = len(self._coverage.tests) * _FEW
        found: dict[str, dict[object, float]] = {one.test: {} for one in self._coverage.tests}
        for name, outline in self._coverage.files.items():
            for line in outline.code:
                tests = self._coverage.tests_reaching(name, line)
                if len(tests) <= few:
                    for one in tests:
                        found[one.test][name, line] = 1 / len(tests)
        return found

    @functools.cached_property
    def _shares(self) -> Mapping[str, float]:
        """The share of the drivers' lines that each test reaches."""
        whole = sum(len(one.code) for one in self._coverage.files.values())
        return {
            one.test: sum(map(len, self._coverage.lines_reached(one.test).values())) / whole
            for one in self._coverage.tests
        }


def _name(source: Source) -> str:
    return source.file.removeprefix("drivers/block/")


def _lines(source: Source) -> list[str]:
    return source.content.decode("utf-8", "replace").splitlines()


def collected(names: Sequence[str]) -> list[str]:
    """The ids of the tests that pytest finds under these names. InputError if there are none."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *names]
    done = subprocess.run(
        command, cwd=paths.checkout("emu mutants --sample"), capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if "::" in line and " " not in line[:5]]
    if done.returncode or not found:
        lines = (done.stdout + done.stderr).splitlines()[-5:]
        raise InputError(f"pytest finds no tests in {' '.join(names)}", lines=lines)
    return found
