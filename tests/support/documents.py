"""The commands that documents, cover letters and `--help` name.

A command in a block (indented by four, or fenced) is meant to be copied: a system test runs it,
unless its comment says "not run by a test", or an HTML comment above the block does. One in
running text, between backticks, is a name: it has to exist, with its options.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.commands.parser import parser

NOT_RUN = "not run by a test"
PROGRAMS = ("emu", "make", "pytest")
PLACEHOLDERS = {
    "RUN": "run",
    "PORT": "1234",
    "PATH": "/usr/bin/true",
    "DIR": "emu",
    "N": "1",
    "LINE": "true",
}
"""What stands for a value, and one in its place. An ellipsis stands for none, or for several."""

_NOT_OURS = {".venv", ".pytest_cache", "build"}
_LINE = re.compile(r"(?: {4,}|\$ )(?:\$ )?(.*)")
_COMMENT = re.compile(r"\s+#\s.*$")
_INLINE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)}) ")


@dataclass(frozen=True)
class Command:
    """A command and where it stands; `block`: on a line of its own; `marked`: not run by a test."""

    where: str
    text: str
    block: bool = False
    marked: bool = False

    def words(self) -> list[str]:
        """Its words without assignments before it, the program without its folder."""
        words = shlex.split(self.text)
        while "=" in words[0]:
            words = words[1:]
        return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def documents() -> list[Path]:
    """All *.md and cover letters of the checkout, in the order of their names."""
    top = paths.checkout()
    found = [*top.rglob("*.md"), *top.rglob("*cover-letter*")]
    return sorted(path for path in found if not _NOT_OURS & set(path.relative_to(top).parts))


def commands_of(text: str, where: str) -> Iterator[Command]:
    """The commands in a document's text."""
    fenced = marked = False
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{where}:{number}"
        if line.startswith("```"):
            fenced = not fenced
            continue
        in_block = fenced or _LINE.fullmatch(line)
        if not in_block and line.strip():
            marked = line.startswith("<!--") and NOT_RUN in line
        match = _LINE.fullmatch(line)
        bare = match[1] if match else line
        if in_block and _COMMAND.match(bare):
            yield Command(place, _COMMENT.sub("", bare), True, marked or NOT_RUN in line)
    # A span may go on in the next line.
    prose = re.sub(r"^ {4,}[^\n]*$|^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in _INLINE.findall(prose):
        if _COMMAND.match(bare := " ".join(span.split())):
            yield Command(where, bare.replace("\\|", "|"))


def help_texts() -> Iterator[tuple[str, str]]:
    """(name, `--help`) of the command line and of every command in it."""
    parsers = [("emu", parser())]
    while parsers:
        name, each = parsers.pop()
        yield f"{name} --help", each.format_help()
        for action in each._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += [(f"{name} {word}", child) for word, child in action.choices.items()]


def made_by(words: list[str]) -> list[list[str]]:
    """The emu and pytest commands that `make WORDS` runs. AssertionError if make refuses."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *words],
        cwd=paths.checkout(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.replace("\\\n", " ").splitlines():
        ours = line.removeprefix("@").removeprefix(".venv/bin/")
        ours = re.sub(r"^python -m pytest\b", "pytest", ours)
        if re.match(r"(emu|pytest)\b", ours):
            found.append(shlex.split(ours))
    return found
