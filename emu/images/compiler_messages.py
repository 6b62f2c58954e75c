"""Messages of the compiler and sparse in make's output, and which are new.

Two outputs are compared without line numbers, which every patch moves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Tool = Literal["build", "sparse"]
"""build: the compiler, objtool, the linker or modpost; sparse: `make C=2`."""

_STEP = re.compile(r"  ([A-Z]+)(?: \[M\])? +\S")
_MESSAGE = re.compile(
    r"(?:(?P<where>[^\s:][^:]*):)?(?:(?P<line>\d+):)?(?:\d+:)? ?"
    r"(?:fatal )?(?:warning|error|WARNING|ERROR): (?P<text>.*)"
)
_BEFORE = re.compile(
    r"In file included from |\s+from \S"
    r"|[^\s:]+: (?:In function |At top level:|note: in included file)"
)
"""Lines that belong to the message after them; all others belong to the one before."""
_NO_MESSAGE = re.compile(r"make(?:\[\d+\])?: |Skipping BTF generation ")
_PLACE = re.compile(r":\d+(?::\d+)?\b")


@dataclass(frozen=True)
class Message:
    """One warning or error. `file` is relative to the kernel's source where it is of ours;
    `lines` are all that was printed for it, the compiler's excerpt and notes too.
    """

    tool: Tool
    file: str
    line: int | None
    text: str
    lines: tuple[str, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same message in a source whose lines have moved.

        sparse says "incorrect type in argument 1" alike of all types, and names them in the
        lines behind it.
        """
        types = [
            _PLACE.sub("", line)
            for line in self.lines
            if self.tool == "sparse" and re.search(r":\d+:\d+:    \S", line)
        ]
        return (self.tool, self.file, _PLACE.sub("", self.text), *types)


def read_messages(output: Iterable[str], top: str = "source/") -> list[Message]:
    """The messages in make's output; `top` is the directory of the kernel's source in its paths.

    With several jobs, make has to be run with --output-sync: the output of a step must follow it.
    """
    found: list[Message] = []
    step, before = "", list[str]()
    attached = False
    for line in output:
        line = line.removeprefix(top).replace(f" {top}", " ")
        if started := _STEP.match(line):
            step, before, attached = started[1], [], False
        elif _NO_MESSAGE.match(line):
            attached = False
        elif parts := _MESSAGE.match(line):
            where, number = parts["where"] or "", parts["line"]
            tool: Tool = "sparse" if step == "CHECK" else "build"
            found.append(
                Message(
                    tool,
                    where,
                    int(number) if number else None,
                    parts["text"],
                    (*before, line),
                )
            )
            before, attached = [], True
        elif _BEFORE.match(line):
            before.append(line)
        elif attached and line.strip():
            last = found[-1]
            found[-1] = Message(last.tool, last.file, last.line, last.text, (*last.lines, line))
    return found


def new_messages(before: Sequence[Message], after: Sequence[Message]) -> list[Message]:
    """Those of `after` that `before` has not, or not as often."""
    known = Counter(message.key for message in before)
    found = []
    for message in after:
        if known[message.key]:
            known[message.key] -= 1
        else:
            found.append(message)
    return found


def messages_as_json(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """For a cache entry, and for scripts."""
    return [asdict(message) for message in messages]


def messages_of_json(rows: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """Back again."""
    return tuple(Message(**{**row, "lines": tuple(row["lines"])}) for row in rows)
