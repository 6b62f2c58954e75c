"""Lines and branches of the drivers that no test reaches, and why: tests/coverage-left-out.toml.

    [[left-out]]
    file = "xen-blkback/xenbus.c"
    function = "xen_blkif_map"
    line = "BUG();"                         the line, without the blanks around it …
    match = "return -E(NOMEM|INVAL);"       … or an expression that all of it matches
    reason = "…"

Without `line` and `match` an entry is about all of the function. An entry that matches no line, or
lines that tests reach in full, is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.suite.coverage import Coverage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_NEEDED, _EITHER = {"file", "function", "reason"}, {"line", "match"}


@dataclass(frozen=True)
class Entry:
    """What is left out: lines of a function that are `line`, or all match `match`; else all."""

    file: str
    function: str
    reason: str
    line: str | None = None
    match: re.Pattern[str] | None = None

    def is_about(self, text: str) -> bool:
        """Whether a line of the function is meant."""
        stripped = text.strip()
        if self.match is not None:
            return self.match.fullmatch(stripped) is not None
        return self.line is None or self.line == stripped

    def __str__(self) -> str:
        what = self.line if self.match is None else self.match.pattern
        return f"{self.file}:{self.function}" + (f": {what}" if what is not None else "")


@dataclass(frozen=True)
class Missing:
    """A line that no test reaches (`branches` is empty), or branches of one that no test takes.

    `reason` is that of the file of reasons, or None.
    """

    file: str
    line: int
    function: str
    text: str
    branches: tuple[int, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Account:
    """All that is missing, and the entries that are stale, each with the reason why."""

    missing: tuple[Missing, ...]
    stale: tuple[tuple[Entry, str], ...]

    def without_reason(self) -> tuple[Missing, ...]:
        """What nobody has given a reason for."""
        return tuple(one for one in self.missing if one.reason is None)


def own_file() -> Path:
    """The file of reasons. Raises InputError where there is no checkout."""
    return paths.checkout("coverage") / "tests/coverage-left-out.toml"


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of a file. Raises InputError that names the entry which is wrong."""
    try:
        made = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return ()
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name}: {error}") from None
    if unknown := made.keys() - {"left-out"}:
        raise InputError(f"{path.name}: unknown: {', '.join(sorted(unknown))}")
    return tuple(
        _entry(one, f"{path.name}: entry {number}")
        for number, one in enumerate(made.get("left-out", []), 1)
    )


def _entry(made: Mapping[str, Any], where: str) -> Entry:
    if missing := _NEEDED - made.keys():
        raise InputError(f"{where} has no {', '.join(sorted(missing))}")
    if unknown := made.keys() - _NEEDED - _EITHER:
        raise InputError(f"{where}: unknown: {', '.join(sorted(unknown))}")
    if not made["reason"].strip():
        raise InputError(f"{where} gives no reason")
    if made.keys() >= _EITHER:
        raise InputError(f"{where} has both line and match")
    try:
        match = re.compile(made["match"]) if "match" in made else None
    except re.error as error:
        raise InputError(f"{where}: match is no regular expression: {error}") from None
    return Entry(made["file"], made["function"], made["reason"], made.get("line"), match)


def account(coverage: Coverage, entries: Iterable[Entry]) -> Account:
    """What no test reaches, with the reasons that entries give, and which entries are stale."""
    entries = tuple(entries)
    matched: set[Entry] = set()
    used: set[Entry] = set()
    missing: list[Missing] = []
    for file, outline in coverage.files.items():
        lines, branches = set(coverage.missing_lines(file)), coverage.missing_branches(file)
        places = coverage.places(file)
        for number in sorted(outline.code):
            function, text = places.at(number), outline.text[number - 1]
            name = function.name if function else ""
            about = [
                one
                for one in entries
                if one.file == file and one.function == name and one.is_about(text)
            ]
            matched.update(about)
            if number not in lines and number not in branches:
                continue
            used.update(about)
            reason = about[0].reason if about else None
            one = Missing(file, number, name, text.strip(), reason=reason)
            if number in lines:
                missing.append(one)
            if number in branches:
                missing.append(Missing(file, number, name, one.text, branches[number], reason))
    stale = [
        (one, "tests reach it" if one in matched else "no line matches")
        for one in entries
        if one not in used
    ]
    return Account(tuple(missing), tuple(stale))
