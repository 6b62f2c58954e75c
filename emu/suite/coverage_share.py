"""How much of the drivers the tests reach: lines, branches, functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emu.suite.coverage import Coverage


@dataclass(frozen=True)
class Share:
    """How much of a file is reached: (reached, all) of its lines, branches and functions."""

    lines: tuple[int, int]
    branches: tuple[int, int]
    functions: tuple[int, int]

    def plus(self, other: Share) -> Share:
        """Both files together."""
        return Share(
            _sum(self.lines, other.lines),
            _sum(self.branches, other.branches),
            _sum(self.functions, other.functions),
        )


def shares_of(coverage: Coverage) -> dict[str, Share]:
    """The share of each file, by name."""
    found = {}
    for file, outline in coverage.files.items():
        reached = coverage.covered_lines(file)
        places = coverage.places(file).all
        code = [outline.code & set(range(one.first, one.last + 1)) for one in places]
        code = [lines for lines in code if lines]
        branches = sum(outline.branches.values())
        missing = sum(map(len, coverage.missing_branches(file).values()))
        found[file] = Share(
            (len(reached), len(outline.code)),
            (branches - missing, branches),
            (sum(bool(lines & reached) for lines in code), len(code)),
        )
    return found


def total_of(shares: Iterable[Share]) -> Share:
    """All files together."""
    total = Share((0, 0), (0, 0), (0, 0))
    for share in shares:
        total = total.plus(share)
    return total


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
