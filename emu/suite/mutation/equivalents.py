"""Mutants that no test can notice, each with the reason: `tests/mutants/equivalent.toml`.

    [[equivalent]]
    id = "fdf3aa296d"
    where = "xen-blkfront.c:blkfront_probe"
    text = "if (!(err != 1)) {"
    reason = "…"

`where` and `text` (what the changed line is then, or "" where it is left out) are for people, and
have to be true: a mutant whose line has changed has another id, and its entry is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from emu.errors import InputError
from emu.suite.mutation.candidates import Candidate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

NAME = "equivalent.toml"


@dataclass(frozen=True)
class Equivalent:
    """An entry of the file."""

    id: str
    where: str
    text: str
    reason: str


_FIELDS = [one.name for one in fields(Equivalent)]


def read_equivalents(path: Path) -> tuple[Equivalent, ...]:
    """The entries of a file, none if there is no such file. InputError for one that is wrong."""
    if not path.is_file():
        return ()
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {error}") from None
    found: list[Equivalent] = []
    for number, entry in enumerate(document.get("equivalent", ()), 1):
        if sorted(entry) != sorted(_FIELDS) or not all(isinstance(v, str) for v in entry.values()):
            raise InputError(f"{path.name}: entry {number} has to have {', '.join(_FIELDS)}")
        if not entry["reason"].strip():
            raise InputError(f"{path.name}: entry {number} ({entry['id']}) has no reason")
        if any(one.id == entry["id"] for one in found):
            raise InputError(f"{path.name}: {entry['id']} is there twice")
        found.append(Equivalent(**entry))
    if unknown := document.keys() - {"equivalent"}:
        raise InputError(f"{path.name}: unknown {', '.join(sorted(unknown))}")
    return tuple(found)


def stale(entries: Iterable[Equivalent], candidates: Sequence[Candidate]) -> list[str]:
    """What is no longer true of entries, a line for each."""
    by_id = {one.id: one for one in candidates}
    found: list[str] = []
    for entry in entries:
        one = by_id.get(entry.id)
        if one is None:
            found.append(f"{entry.id} ({entry.where}): there is no such mutant any more")
        elif (where := f"{one.short_file}:{one.function}") != entry.where:
            found.append(f"{entry.id}: where is {where}, not {entry.where}")
        elif (text := changed_text(one)) != entry.text:
            found.append(f"{entry.id} ({entry.where}): text is {text!r}")
    return found


def changed_text(candidate: Candidate) -> str:
    """What an entry has as the text of a mutant: the line or lines that it adds, in one."""
    added = (row[1:].strip() for row in candidate.changed_lines if row[0] == "+")
    return " ".join(row for row in added if row != ";")
