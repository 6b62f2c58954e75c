"""Unified diffs as they stand in patches: read strictly, since patch(1) forgives too much.

patch(1) drops a hunk whose lines were wrapped, and what a hunk has more than its header says.
Here each is an error that names the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from emu.errors import InputError

NOTHING = "/dev/null"
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)")
_GIT = re.compile(r"diff --git (\"?a/.+?\"?) (\"?b/.+\"?)$")
_EXTENDED = re.compile(
    r"(old mode|new mode|deleted file mode|new file mode|copy from|copy to|rename from|rename to"
    r"|similarity index|dissimilarity index|index) "
)
_RENAME = re.compile(r"(?:rename|copy) (from|to) (.*)")
_BINARY = re.compile(r"GIT binary patch$|Binary files .* differ$")
_BEHIND = re.compile(r"diff |Index: |@@|Only in |From |commit [0-9a-f]|base-commit: |=+$")
"""What may follow the last line of a hunk, beside an empty line and a mail's signature."""
_RAW_HINT = (
    "a mail program or a web page has changed it: take the mail itself (the archive's mbox, or "
    "b4), or send with git send-email"
)


@dataclass(frozen=True)
class Hunk:
    """A hunk: where it is in the old and the new file (first line, from 1), and its lines.

    `lines` begin with " ", "-", "+", or a backslash for the remark on a missing end of line.
    """

    old_start: int
    new_start: int
    section: str
    lines: tuple[str, ...]

    @property
    def before(self) -> tuple[str, ...]:
        """The lines that it expects."""
        return tuple(line[1:] for line in self.lines if line[:1] in " -")

    @property
    def after(self) -> tuple[str, ...]:
        """The lines that it leaves."""
        return tuple(line[1:] for line in self.lines if line[:1] in " +")

    def __str__(self) -> str:
        old, new = len(self.before), len(self.after)
        section = f" {self.section}" if self.section else ""
        return f"@@ -{self.old_start},{old} +{self.new_start},{new} @@{section}"


@dataclass(frozen=True)
class FileDiff:
    """What a patch does to one file; `old` or `new` is NOTHING where it is made or removed.

    `extended` are git's lines between "diff --git" and the first hunk: modes, renames.
    """

    old: str
    new: str
    extended: tuple[str, ...]
    hunks: tuple[Hunk, ...]

    @property
    def name(self) -> str:
        """The file it is about: the new name, or the old one of a file that is removed."""
        return self.old if self.new == NOTHING else self.new

    @property
    def names(self) -> tuple[str, ...]:
        """Both names, where the file is renamed."""
        return tuple(dict.fromkeys(one for one in (self.old, self.new) if one != NOTHING))

    def text(self) -> str:
        """The diff again, for `patch -p1`."""
        both = [self.old if self.old != NOTHING else self.new, self.name]
        lines = [f"diff --git a/{both[0]} b/{both[1]}", *self.extended]
        if self.hunks:
            lines += [f"--- {_with('a', self.old)}", f"+++ {_with('b', self.new)}"]
        for hunk in self.hunks:
            lines += [str(hunk), *hunk.lines]
        return "".join(f"{line}\n" for line in lines)


def _with(prefix: str, name: str) -> str:
    return name if name == NOTHING else f"{prefix}/{name}"


def read_diffs(
    text: str, what: str, named: Callable[[str], str] | None = None
) -> tuple[FileDiff, ...]:
    """The diffs in a text, which may have other text before, between and behind them.

    `what` names the text in errors; `named` gives the name in a kernel tree of a file's name in
    the diff (by default what `patch -p1` makes of it). Raises InputError for a diff that is cut
    short, wrapped, binary, or of another kind than `diff -u`.
    """
    return tuple(_Reader(text, what, named or without_prefix).read())


def without_prefix(name: str) -> str:
    """A file's name without its first folder, as with `patch -p1`."""
    return name.partition("/")[2] or name


class _Reader:
    def __init__(self, text: str, what: str, named: Callable[[str], str]) -> None:
        self._lines = text.split("\n")
        self._at = 0
        self._what, self._named = what, named

    def read(self) -> Iterator[FileDiff]:
        while self._at < len(self._lines):
            line = self._line
            if _GIT.match(line) or (self._is_header() and not line.startswith("diff ")):
                yield self._file()
                continue
            if _HUNK.match(line):
                raise self._error("a hunk without the lines `--- a/…` and `+++ b/…` before it")
            if line.startswith("@@@ "):
                raise self._error("the diff of a merge", "make one against a parent: git diff A B")
            if line.startswith("*** ") and self._next(1).startswith("--- ") and "/" in line:
                raise self._error("a context diff", "make it with diff -u, or git format-patch")
            if _BINARY.match(line):
                raise self._error("a binary file")
            self._at += 1

    @property
    def _line(self) -> str:
        return self._lines[self._at] if self._at < len(self._lines) else ""

    def _next(self, ahead: int) -> str:
        at = self._at + ahead
        return self._lines[at] if at < len(self._lines) else ""

    def _is_header(self) -> bool:
        """Whether "--- a" and "+++ b" stand here."""
        return self._line.startswith("--- ") and self._next(1).startswith("+++ ")

    def _error(self, why: str, hint: str = _RAW_HINT) -> InputError:
        shown = self._line if len(self._line) <= 100 else f"{self._line[:100]}…"
        return InputError(
            f"{self._what}: line {self._at + 1}: {why}", lines=[shown] if shown else (), hint=hint
        )

    def _file(self) -> FileDiff:
        old = new = ""
        extended: list[str] = []
        if found := _GIT.match(self._line):
            old, new = (self._name(one) for one in found.groups())
            self._at += 1
            while self._at < len(self._lines) and _EXTENDED.match(self._line):
                if renamed := _RENAME.match(self._line):
                    kind = self._line.partition(" ")[0]
                    extended.append(f"{kind} {renamed[1]} {self._bare(renamed[2])}")
                elif not self._line.startswith("index "):
                    extended.append(self._line)
                self._at += 1
            if _BINARY.match(self._line):
                raise self._error(f"{new} is a binary file", "only text can be patched here")
            if any(line.startswith("new file") for line in extended):
                old = NOTHING
            if any(line.startswith("deleted file") for line in extended):
                new = NOTHING
        if self._is_header():
            old, new = self._name(self._line[4:]), self._name(self._next(1)[4:])
            self._at += 2
            if not _HUNK.match(self._line):
                raise self._error(f"no hunk (`@@ -…`) follows the name of {new}")
        hunks: list[Hunk] = []
        while _HUNK.match(self._line):
            hunks.append(self._hunk(old if new == NOTHING else new, len(hunks) + 1))
        return FileDiff(old, new, tuple(extended), tuple(hunks))

    def _name(self, text: str) -> str:
        # What follows a tab is a time.
        name = text.partition("\t")[0].strip().strip('"')
        return name if name == NOTHING else self._named(name)

    def _bare(self, name: str) -> str:
        """A name in `rename from`, which has no a/ before it."""
        return self._named(f"a/{name.strip()}")

    def _hunk(self, name: str, number: int) -> Hunk:
        found = _HUNK.match(self._line)
        assert found is not None
        what = f"hunk {number} of {name}"
        old, new = (1 if found[n] is None else int(found[n]) for n in (2, 4))
        self._at += 1
        lines: list[str] = []
        while old > 0 or new > 0 or self._line.startswith("\\ "):
            line, last = self._line, self._at >= len(self._lines) - 1
            if last and not line:
                raise self._error(f"{what} ends {old or new} lines early: the patch is cut short")
            if not line:
                line = " "  # an empty line of the context that lost its blank
            kind = line[0]
            if kind not in " +-\\":
                raise self._error(f"{what} has a line that is none of a diff: it was wrapped")
            old -= kind in " -"
            new -= kind in " +"
            if old < 0 or new < 0:
                raise self._error(f"{what} has more lines than its header says")
            lines.append(line)
            self._at += 1
        behind = self._line
        signature = behind.rstrip() in ("--", "---") or self._is_header()
        if (behind[:1] in ("+", "-") or (behind[:1] == " " and behind.strip())) and not signature:
            raise self._error(f"{what} has more lines than its header says")
        if behind.strip() and not signature and not _BEHIND.match(behind):
            raise self._error(f"{what} has a line behind it that is none of a diff: it was wrapped")
        return Hunk(int(found[1]), int(found[3]), found[5].strip(), tuple(lines))


def place_of(expected: Sequence[str], rows: Sequence[str], nominal: int) -> int | None:
    """The index in `rows` at which `expected` stands as it is, nearest to `nominal`."""
    wanted, size = tuple(expected), len(expected)
    if not wanted:
        return min(max(nominal, 0), len(rows))
    found = (at for at in range(len(rows) - size + 1) if tuple(rows[at : at + size]) == wanted)
    return min(found, key=lambda at: abs(at - nominal), default=None)
