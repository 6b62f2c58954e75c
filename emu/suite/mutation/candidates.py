"""The candidates: each place of the drivers with each change, under a name that stays.

A candidate is named by what it changes and not by where that stands: changes elsewhere in the
file leave its name as it was.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from emu.images.patched import End
from emu.suite.mutation.operators import Edit, edits
from emu.suite.mutation.source import FRONT_FILES, Source

_DIGITS = 10
_CONTEXT = 3


@dataclass(frozen=True)
class Candidate:
    """One change of one place: `line` is its number (from 1), `old` and `new` the text there.

    `id` is ten hex digits of the hash of file, function, operator, both texts, the text of the
    line, and which one of several alike in the function it is.
    """

    id: str
    source: Source = field(repr=False)
    function: str
    operator: str
    line: int
    old: str
    new: str
    edit: Edit = field(repr=False)

    @property
    def file(self) -> str:
        """The name in a kernel tree."""
        return self.source.file

    @property
    def then(self) -> int | None:
        """The line of the first statement that is done less often, if that is known."""
        at = self.edit.then
        return None if at is None else self.source.content.count(b"\n", 0, at) + 1

    @property
    def short_file(self) -> str:
        """The name below drivers/block/."""
        return self.file.removeprefix("drivers/block/")

    @property
    def end(self) -> End:
        """The driver that is changed."""
        return "front" if self.file in FRONT_FILES else "back"

    @property
    def where(self) -> str:
        """File and line, as a compiler writes it."""
        return f"{self.short_file}:{self.line}"

    @property
    def content(self) -> bytes:
        """The file with the change. Every line stays where it was."""
        start, end = self.edit.start, self.edit.end
        lines = self.source.content[start:end].count(b"\n") - self.edit.text.count("\n")
        by = self.edit.text.encode() + b"\n" * max(lines, 0)
        return self.source.content[:start] + by + self.source.content[end:]

    @property
    def patch(self) -> str:
        """The change as a patch, with the sentence in front that says what it is."""
        rows = difflib.unified_diff(
            _rows(self.source.content), _rows(self.content),
            f"a/{self.file}", f"b/{self.file}", n=_CONTEXT,
        )  # fmt: skip
        said = f"{self.function} ({self.where}): {self.operator}, mutant {self.id}"
        return f"{said}\n\n{''.join(rows)}"

    @property
    def changed_lines(self) -> tuple[str, ...]:
        """The lines of the patch that begin with - or +, without those that are empty."""
        rows = [row for row in self.patch.splitlines()[4:] if row[:1] in ("-", "+")]
        return tuple(row for row in rows if row[1:].strip())


def _rows(content: bytes) -> list[str]:
    return content.decode("utf-8").splitlines(keepends=True)


def candidates(sources: Iterable[Source]) -> list[Candidate]:
    """All candidates of some files, in the order of their text."""
    found: list[Candidate] = []
    for source in sources:
        for function in source.functions():
            alike: Counter[tuple[str, ...]] = Counter()
            for edit in edits(source, function):
                line = source.content.count(b"\n", 0, edit.start) + 1
                old = source.content[edit.start : edit.end].decode("utf-8", "replace")
                texts = (edit.operator, old, edit.text, source.line(line))
                what = (source.file, function.name, *map(_words, texts))
                name = _digest(*what, str(alike[what]))
                alike[what] += 1
                found.append(
                    Candidate(
                        name, source, function.name, edit.operator, line, old, edit.text, edit
                    )
                )
    return found


def _words(text: str) -> str:
    return " ".join(text.split())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_DIGITS]


def in_random_order(found: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Candidates in an order that depends on `seed` and their names, function by function.

    Any first so many have of each function about as large a share as it has of all. A candidate
    more or less leaves the order of the others of its function.
    """
    functions: dict[tuple[str, str], list[Candidate]] = {}
    for one in found:
        functions.setdefault((one.file, one.function), []).append(one)
    placed: list[tuple[float, str, Candidate]] = []
    for (file, name), members in functions.items():
        first = _fraction(str(seed), file, name)
        members.sort(key=lambda one: _digest(str(seed), one.id))
        for number, one in enumerate(members):
            placed.append(((number + first) / len(members), one.id, one))
    return [one for _, _, one in sorted(placed, key=lambda place: place[:2])]


def _fraction(*parts: str) -> float:
    return int(_digest(*parts), 16) / float(16**_DIGITS)
