"""Applying a patch exactly, and saying where it does not fit.

patch(1) applies: lines may have moved, the context must be the same. What it refuses is looked
at again here, for the place in the file that is most like what the patch expects.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError
from emu.images.diffs import NOTHING, FileDiff, Hunk, place_of, read_diffs
from emu.images.patch_files import Patch
from emu.runprogram import run

_COMMAND = ("patch", "-p1", "-N", "-F0", "--no-backup-if-mismatch", "-r-")
_MISSING = "apt-get install patch"
_REBASE = "“-” is what the patch expects, “+” what stands there: rebase the patch onto this source"
_RETABBED = (
    "only white space differs: it was changed on the way (tabs to blanks?); take the mail itself, "
    "not its text from a web page"
)
_AROUND = 3
"""Lines that are shown around what differs."""
_SHOWN = 16
"""Lines that are shown of a hunk."""


class PatchRefused(InputError):
    """A patch that does not apply."""


@dataclass(frozen=True)
class _Misfit:
    """A hunk (number from 1) of a file that does not fit, and what the file had by then."""

    diff: FileDiff
    number: int
    rows: tuple[str, ...]
    nominal: int


def apply_patch(path: Path, tree: Path) -> None:
    """Apply the patch in a file below `tree`, exactly (lines may have moved, context may not).

    Raises PatchRefused naming the file and the hunk that does not apply, with what the file
    has there; then the tree is as it was.
    """
    content = path.read_bytes()
    diffs = read_diffs(content.decode("utf-8", "surrogateescape"), path.name)
    if not diffs:
        raise PatchRefused(f"{path.name} changes nothing: it has no line `--- a/…`")
    _apply(content, diffs, path.name, tree)


def apply(patch: Patch, tree: Path) -> None:
    """The same of a patch that was read."""
    _apply(patch.text.encode("utf-8", "surrogateescape"), patch.diffs, str(patch), tree)


def fits(patches: Sequence[Patch], tree: Path) -> bool:
    """Whether all of them apply below `tree`, one after the other; those that do, are."""
    try:
        for patch in patches:
            apply(patch, tree)
    except PatchRefused:
        return False
    return True


def _apply(content: bytes, diffs: Sequence[FileDiff], what: str, tree: Path) -> None:
    made: set[str] = set()  # by an earlier diff of this patch
    for diff in diffs:
        if diff.old != NOTHING and diff.old not in made and not (tree / diff.old).is_file():
            raise PatchRefused(f"{what} changes {diff.old}, which is not in the source")
        made.add(diff.new)
    names = {name for diff in diffs for name in diff.names}
    before = {name: _content(tree / name) for name in names}
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    env = {**kept, "LC_ALL": "C"}
    done = run(_COMMAND, cwd=tree, env=env, data=content, missing=_MISSING)
    if done.status == 0:
        return
    for name, was in before.items():
        if was is not None:
            (tree / name).write_bytes(was)
        else:
            (tree / name).unlink(missing_ok=True)
    refused = _explained(what, diffs, before)
    raise refused or PatchRefused(f"{what} cannot be applied", lines=done.tail(5))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _rows(content: bytes | None) -> list[str]:
    return [] if content is None else content.decode("utf-8", "surrogateescape").split("\n")


def _explained(
    what: str, diffs: Sequence[FileDiff], before: Mapping[str, bytes | None]
) -> PatchRefused | None:
    if _is_in(diffs, before):
        return PatchRefused(f"{what} is in this source already")
    misfits: list[_Misfit] = []
    whole = {name: _rows(content) for name, content in before.items()}
    for diff in diffs:
        if diff.old == NOTHING:
            if before[diff.new] is not None:
                return PatchRefused(f"{what} makes {diff.new}, which is in the source already")
            whole[diff.new] = [row for hunk in diff.hunks for row in hunk.after]
            continue
        rows, moved = whole[diff.old], 0
        for number, hunk in enumerate(diff.hunks, 1):
            nominal = max(hunk.old_start - 1, 0) + moved
            at = place_of(hunk.before, rows, nominal)
            if at is None:
                misfits.append(_Misfit(diff, number, tuple(rows), nominal))
                continue
            rows[at : at + len(hunk.before)] = hunk.after
            moved = at - max(hunk.old_start - 1, 0) + len(hunk.after) - len(hunk.before)
        whole[diff.name] = rows
    if not misfits:
        return _anchored(what, diffs)
    total = sum(len(diff.hunks) for diff in diffs)
    return _shown(what, misfits, total)


def _anchored(what: str, diffs: Sequence[FileDiff]) -> PatchRefused | None:
    """The error for a hunk that patch(1) takes for the end of the file: less context behind."""
    for diff in diffs:
        for number, hunk in enumerate(diff.hunks, 1):
            changed = [n for n, line in enumerate(hunk.lines) if line[0] in "+-"]
            before, behind = changed[0], len(hunk.lines) - 1 - changed[-1]
            if behind < before:
                return PatchRefused(
                    f"{what} does not apply: hunk {number} of {diff.name} has {before} lines of "
                    f"context before its changes and {behind} behind them, so that it fits at the "
                    "end of the file alone",
                    hint="make it with the usual context: git diff, diff -u",
                )
    return None


def _is_in(diffs: Sequence[FileDiff], before: Mapping[str, bytes | None]) -> bool:
    """Whether the files have what the patch leaves, hunk by hunk."""
    hunks = [(diff, hunk) for diff in diffs for hunk in diff.hunks]
    return bool(hunks) and all(
        place_of(hunk.after, _rows(before[diff.name]), hunk.new_start - 1) is not None
        for diff, hunk in hunks
    )


def _shown(what: str, misfits: Sequence[_Misfit], total: int) -> PatchRefused:
    first = misfits[0]
    hunk = first.diff.hunks[first.number - 1]
    found = _most_like(hunk, first.rows, first.nominal)
    name = f"hunk {first.number} of {first.diff.old}"
    if place_of(hunk.after, first.rows, first.nominal) is not None and hunk.before != hunk.after:
        more = f"{name} (line {first.nominal + 1}) is in the source already"
    else:
        more = f"{name} does not fit at line {first.nominal + 1}"
    if found is None:
        lines = [f"{n:6}  {row}" for n, row in _window(first.rows, first.nominal)]
        nothing = "nothing there is like what it expects; there stands" if lines else (
            f"the file has {len(first.rows) - 1} lines"
        )  # fmt: skip
        more += f": {nothing}"
        hint = "is it for another version of the drivers?"
    else:
        if found != first.nominal:
            more += f"; most like it is line {found + 1}"
        lines, hint = _compared(hunk, first.rows, found)
    if len(misfits) > 1:
        more += f" ({len(misfits)} of {total} hunks do not fit)"
    return PatchRefused(f"{what} does not apply: {more}", lines=lines, hint=hint)


def _window(rows: Sequence[str], at: int) -> list[tuple[int, str]]:
    start = max(at - 1, 0)
    return [(n + 1, rows[n].expandtabs()) for n in range(start, min(start + 6, len(rows) - 1))]


def _most_like(hunk: Hunk, rows: Sequence[str], nominal: int) -> int | None:
    """The index at which most of what the hunk expects stands; None where nothing does.

    Each line of the hunk votes for where it would put the hunk's start, the more the rarer the
    line is in the file; a vote counts a little for the places beside it, too.
    """
    where: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        where.setdefault(_words(row), []).append(number)
    votes: Counter[int] = Counter()
    for number, line in enumerate(hunk.before):
        places = where.get(_words(line), []) if any(map(str.isalnum, line)) else []
        for place in places:
            for beside, share in ((0, 1.0), (-1, 0.5), (1, 0.5), (-2, 0.25), (2, 0.25)):
                votes[place - number + beside] += share / len(places)  # type: ignore[assignment]
    if not votes or max(votes.values()) < 1:
        return None
    best = max(votes, key=lambda at: (round(votes[at], 6), -abs(at - nominal)))
    return min(max(best, 0), len(rows) - 1)


def _words(line: str) -> str:
    return " ".join(line.split())


def _compared(hunk: Hunk, rows: Sequence[str], at: int) -> tuple[list[str], str]:
    """What the hunk expects and what stands there, as a diff with the file's line numbers."""
    expected = hunk.before
    first, behind = max(at - _AROUND, 0), at + len(expected) + _AROUND
    exact = rows[at : at + len(expected)]
    white = [*map(_words, exact)] == [*map(_words, expected)]
    if white:
        first, behind = at, at + len(expected)
    there = rows[first:behind]
    matcher = difflib.SequenceMatcher(None, expected, there, autojunk=False)
    lines: list[tuple[str, str]] = []
    for kind, old, old_end, new, new_end in matcher.get_opcodes():
        # What stands before and behind the hunk is none of it.
        outside = kind == "insert" and old in (0, len(expected))
        if kind == "equal":
            lines += [(" ", f"{first + n + 1:6}  {there[n]}") for n in range(new, new_end)]
        elif not outside:
            lines += [("-", f"        {expected[n]}") for n in range(old, old_end)]
            lines += [("+", f"{first + n + 1:6}  {there[n]}") for n in range(new, new_end)]
    changed = [n for n, (mark, _) in enumerate(lines) if mark != " "]
    near = [n for n in range(len(lines)) if any(abs(n - one) <= _AROUND for one in changed)]
    shown = [f"{lines[n][0]}{lines[n][1]}".expandtabs() for n in near]
    if len(shown) > _SHOWN:
        shown = [*shown[:_SHOWN], f"… and {len(shown) - _SHOWN} more lines"]
    return shown, _RETABBED if white else _REBASE
