"""As much of C as coverage needs: where functions are, and which lines decide something.

Kernel style makes that easy: a function's name stands in a line that begins in the first column,
its braces in the first column, too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

_NOT_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_DECIDES = re.compile(r"\b(?:if|while|for|switch|\w*for_?each\w*)\s*\(")
_OPERATOR = re.compile(r"&&|\|\||\?")
_NEVER = re.compile(r"\b(?:BUG_ON|BUILD_BUG_ON)\s*\(")
_MACRO = re.compile(r"^#.*(?:\\\n.*)*", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A function with the numbers of its first line (of its head) and of its closing brace."""

    name: str
    first: int
    last: int


def code_of(text: str) -> str:
    """The text with spaces for what is in comments, strings and characters; lines stay."""
    return _NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def functions(text: str) -> list[Function]:
    """The functions of a source file in kernel style, in order."""
    lines = _MACRO.sub(lambda found: re.sub(r"[^\n\\]", " ", found[0]), code_of(text)).split("\n")
    found = []
    for opening, line in enumerate(lines):
        if line.rstrip() != "{":
            continue
        first = opening
        while first and (lines[first - 1].strip() and lines[first - 1][0] not in "}#"):
            first -= 1
        name = _name("\n".join(lines[first:opening]))
        last = next((n for n in range(opening, len(lines)) if lines[n].startswith("}")), opening)
        if name is not None:
            found.append(Function(name, first + 1, last + 1))
    return found


def _name(head: str) -> str | None:
    """The name that a function's head declares: what stands before its last parentheses."""
    depth, found = 0, None
    for word in re.finditer(r"([A-Za-z_]\w*)?\s*([()])", head):
        if word[2] == "(" and not depth:
            found = word[1] or found
        depth += 1 if word[2] == "(" else -1
    return found


class Places:
    """Which function each line of a file is in; `more` are functions by name, with their first
    and last lines, that the text does not show (a macro's).
    """

    def __init__(self, text: str, more: Mapping[str, tuple[int, int]] | None = None) -> None:
        found = functions(text)
        known = {one.name for one in found}
        found += [Function(name, *at) for name, at in (more or {}).items() if name not in known]
        self.all = tuple(sorted(found, key=lambda one: (one.first, one.last, one.name)))

    def at(self, line: int) -> Function | None:
        """The function that a line belongs to; None outside of any."""
        return next((one for one in self.all if one.first <= line <= one.last), None)


def deciding_lines(text: str) -> frozenset[int]:
    """The lines where the source itself decides: a condition of if, while, for, switch or of a
    loop macro (…for_each…, …foreach…), on one line or several, or one of the operators && || ?:.

    Other branches are inside macros and inlined functions of the kernel, of which a test of the
    driver knows nothing. What BUG_ON decides is left out, too: its other branch ends the kernel.
    """
    code = code_of(text)
    never = {at for found in _NEVER.finditer(code) for at in range(*_extent(code, found.end() - 1))}
    starts = [0, *(found.end() for found in re.finditer("\n", code))]

    def line_at(at: int) -> int:
        return bisect_right(starts, at)

    lines: set[int] = set()
    for found in _DECIDES.finditer(code):
        if found.start() not in never:
            first, end = _extent(code, found.end() - 1)
            lines.update(range(line_at(first), line_at(end) + 1))
    lines.update(line_at(f.start()) for f in _OPERATOR.finditer(code) if f.start() not in never)
    return frozenset(lines)


def _extent(code: str, opening: int) -> tuple[int, int]:
    """From a parenthesis to behind the one that closes it."""
    depth = 0
    for at in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        if not depth:
            return opening, at
    return opening, len(code)
