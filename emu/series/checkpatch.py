"""The kernel's own style check, scripts/checkpatch.pl, and what a series is excused from.

A file `checkpatch-allowed` beside the patches excuses remarks, one a line:

    TYPE  FILE  WORDS  # why

where TYPE is checkpatch's name of the message (CAMELCASE), FILE the file it is about ("-" for
the patch's own text), and WORDS a part of its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError, RigError
from emu.images.context import BuildContext
from emu.images.driver_source import files_of_source
from emu.images.kernel_specs import Spec
from emu.runprogram import run

ALLOWED = "checkpatch-allowed"
_FILES = ("scripts/checkpatch.pl", "scripts/const_structs.checkpatch", "scripts/spelling.txt")
_RECIPE = 1
_REMARK = re.compile(r"(ERROR|WARNING|CHECK):([A-Z0-9_]+): (.*)")
_PLACE = re.compile(r"#\d+: FILE: (.*?):(\d+):$")
_TOTAL = re.compile(
    r"total: (?P<errors>\d+) errors, (?P<warnings>\d+) warnings, (?P<checks>\d+) checks, "
    r"(?P<lines>\d+) lines checked"
)


@dataclass(frozen=True)
class Remark:
    """One message of checkpatch. `file` is "-" where it is about the patch's own text."""

    level: str
    type: str
    text: str
    file: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Allowed:
    """A line of checkpatch-allowed."""

    type: str
    file: str
    words: str
    reason: str

    def excuses(self, remark: Remark) -> bool:
        """Whether it is about this remark."""
        same = (self.type, self.file) == (remark.type, remark.file)
        return same and self.words in remark.text


@dataclass(frozen=True)
class Style:
    """checkpatch's result for one patch: its total line, open remarks and allowed ones."""

    total: str
    open: tuple[Remark, ...]
    excused: tuple[Remark, ...]


def scripts(wanted: Spec, context: BuildContext) -> Path:
    """The directory of checkpatch.pl and the lists it reads, out of the kernel's source."""
    top = files_of_source(
        wanted, _FILES, context, kind="checkpatch", what="checkpatch", recipe=_RECIPE
    )
    return top / "scripts"


def check(patch: Path, allowed: Sequence[Allowed], tool: Path, place: Path) -> Style:
    """Run checkpatch --strict on one patch; `place` is an empty directory to run it in.

    Without a kernel tree around, since there is none: what it asks of MAINTAINERS and of
    Documentation/ is left out.
    """
    command = ["perl", str(tool / "checkpatch.pl"), "--strict", "--no-tree", "--show-types"]
    done = run(
        # Who sends a patch signs it off.
        [*command, "--no-signoff", "--color=never", str(patch.absolute())],
        cwd=place,
        # Not the user's ~/.checkpatch.conf.
        env={"PATH": "/usr/bin:/bin", "HOME": str(place), "LC_ALL": "C.UTF-8"},
    )
    return judge(done.text.splitlines() or done.errors.splitlines(), allowed, patch.name)


def judge(output: Sequence[str], allowed: Sequence[Allowed], what: str) -> Style:
    """Read checkpatch's output. Raises RigError where it does not add up."""
    total = next((found for line in output if (found := _TOTAL.match(line))), None)
    remarks = list(_remarks(output))
    if total is None or len(remarks) != sum(
        int(total[n]) for n in ("errors", "warnings", "checks")
    ):
        raise RigError(f"the output of checkpatch on {what} can't be read", lines=output[-8:])
    excused = [remark for remark in remarks if any(one.excuses(remark) for one in allowed)]
    return Style(total[0], tuple(one for one in remarks if one not in excused), tuple(excused))


def _remarks(output: Iterable[str]) -> Iterator[Remark]:
    """Each remark is a block that an empty line ends."""
    block: list[str] = []
    for line in [*output, ""]:
        if line:
            block.append(line)
            continue
        if block and (head := _REMARK.match(block[0])):
            places = [found for row in block if (found := _PLACE.match(row))]
            yield Remark(head[1], head[2], head[3], places[0][1] if places else "-", tuple(block))
        block = []


def read_allowed(directory: Path) -> tuple[Allowed, ...]:
    """The file checkpatch-allowed of a directory of patches; none if it is not there.

    Raises InputError for a line without a reason.
    """
    path = directory / ALLOWED
    if not path.exists():
        return ()
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        columns, _, reason = line.partition("#")
        if not columns.strip():
            continue
        words = columns.split(maxsplit=2)
        if len(words) != 3 or not reason.strip():
            raise InputError(
                f"{path}:{number} is no allowed remark: {line.strip()!r}",
                hint="each line: TYPE  FILE  WORDS  # why",
            )
        found.append(Allowed(words[0], words[1], words[2].strip(), reason.strip()))
    return tuple(found)
