"""What the tests reach of the drivers, taken together.

    coverage = read_coverage(Cache())
    coverage.tests_reaching("xen-blkfront.c", 1210)     quickest first
    coverage.covered_lines("xen-blkback/blkback.c")

Names of files are relative to drivers/block. All is about one source: the drivers of Linux 6.1
with the series, on whichever kernel they ran. Records of tests that did not pass do not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from emu import paths
from emu.errors import InputError
from emu.images.cache import Cache
from emu.suite import gcov, records
from emu.suite.csource import Places
from emu.suite.gcov import FileCounts
from emu.suite.records import FileOutline, Outline, Record

HINT = "emu coverage, or make coverage"


@dataclass(frozen=True, order=True)
class TestSeconds:
    """A test by its pytest id, and the seconds it took; the quickest is the least."""

    __test__ = False  # pytest would take the name for that of a class of tests

    seconds: float
    test: str


class Coverage:
    """What tests have reached of one source of the drivers."""

    def __init__(self, outline: Outline, tests: Iterable[Record]) -> None:
        self.source = outline.source
        """The digest of the source."""
        self.files: Mapping[str, FileOutline] = outline.files
        """What there is to reach."""
        self._places: dict[str, Places] = {}
        self._records = tuple(
            one for one in tests if any(part.source == self.source for part in one.reached)
        )

    @cached_property
    def tests(self) -> tuple[TestSeconds, ...]:
        """The tests that reach anything of it, quickest first."""
        return tuple(sorted(TestSeconds(one.seconds, one.test) for one in self._records))

    @cached_property
    def counts(self) -> Mapping[str, FileCounts]:
        """All tests together. A line of a build with other branches than the outline's (another
        configuration) counts as a line, not for its branches."""
        sums = {name: FileCounts({}, {}) for name in self.files}
        for record in self._records:
            for name, counts in self._of(record):
                outline = self.files[name]
                lines = {n: count for n, count in counts.lines.items() if n in outline.code}
                branches = {
                    n: taken
                    for n, taken in counts.branches.items()
                    if len(taken) == outline.branches.get(n)
                }
                sums[name] = gcov.plus(sums[name], FileCounts(lines, branches))
        return sums

    def covered_lines(self, file: str) -> frozenset[int]:
        """The lines of a file that some test reaches."""
        return frozenset(self.counts[file].lines)

    def missing_lines(self, file: str) -> list[int]:
        """The lines of a file with code that no test reaches, in order."""
        return sorted(self.files[file].code - self.covered_lines(file))

    def missing_branches(self, file: str) -> dict[int, tuple[int, ...]]:
        """The branches of a file that no test takes: their numbers on a line, from 0."""
        found = {}
        for line, number in sorted(self.files[file].branches.items()):
            taken = self.counts[file].branches.get(line, (0,) * number)
            if missing := tuple(n for n, count in enumerate(taken) if not count):
                found[line] = missing
        return found

    def tests_reaching(self, file: str, line: int) -> tuple[TestSeconds, ...]:
        """The tests that reach a line, quickest first."""
        return self._by_line.get((file, line), ())

    def lines_reached(self, test: str) -> dict[str, frozenset[int]]:
        """The lines that one test reaches, by file."""
        found: dict[str, frozenset[int]] = {}
        for record in self._records:
            if record.test == test:
                for name, counts in self._of(record):
                    found[name] = found.get(name, frozenset()) | frozenset(counts.lines)
        return found

    def places(self, file: str) -> Places:
        """Which lines of a file are of which function."""
        if file not in self._places:
            outline = self.files[file]
            self._places[file] = Places("\n".join(outline.text), outline.functions)
        return self._places[file]

    @cached_property
    def _by_line(self) -> Mapping[tuple[str, int], tuple[TestSeconds, ...]]:
        found: dict[tuple[str, int], set[TestSeconds]] = {}
        for record in self._records:
            one = TestSeconds(record.seconds, record.test)
            for name, counts in self._of(record):
                for line in counts.lines:
                    found.setdefault((name, line), set()).add(one)
        return {place: tuple(sorted(tests)) for place, tests in found.items()}

    def _of(self, record: Record) -> Iterable[tuple[str, FileCounts]]:
        for part in record.reached:
            if part.source == self.source:
                yield from ((name, one) for name, one in part.files.items() if name in self.files)


def read_coverage(cache: Cache, source: str | None = None) -> Coverage:
    """What the tests of this checkout reached when they last ran under coverage.

    `source` is the digest of a source of the drivers; by default that which most tests ran on.
    Raises InputError where nothing was recorded.
    """
    folder = cache.store(records.STORE)
    top = paths.checkout("coverage")
    passed = (one for one in records.read_all(folder) if one.outcome == "passed")
    return coverage_of(
        records.outlines(folder), [one for one in passed if _is_there(one.test, top)], source
    )


def _is_there(test: str, top: Path) -> bool:
    """Whether a checkout has a test still, by its pytest id."""
    file, _, rest = test.partition("::")
    name = rest.partition("[")[0].rpartition("::")[2]
    try:
        return (
            re.search(rf"^\s*def {re.escape(name)}\(", _text(top / file), re.MULTILINE) is not None
        )
    except OSError:
        return False


@lru_cache(maxsize=256)
def _text(path: Path) -> str:
    return path.read_text()


def coverage_of(
    outlines: Iterable[Outline], there: Iterable[Record], source: str | None = None
) -> Coverage:
    """The coverage in records. Raises InputError where there is none of such a source."""
    there = list(there)
    ran = Counter((part.source, part.build) for one in there for part in one.reached)
    by_source = Counter(part for one in there for part in {each.source for each in one.reached})
    if source is None and by_source:
        source = max(by_source, key=lambda one: (by_source[one], one))
    of_it = [one for one in outlines if one.source == source]
    if not of_it:
        raise InputError("no test was run under coverage yet", hint=HINT)
    # Builds differ a little with the kernels' configurations: the measure is that of most tests.
    outline = max(of_it, key=lambda one: (ran[one.source, one.build], one.build))
    return Coverage(outline, there)
