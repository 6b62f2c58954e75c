"""Requests of a test, one by one, and what a disk has to hold after them.

`Asker` runs guest/ask.c: in the domU on a disk, or in dom0 on a LUN's device. A sector has its
number and its generation in it, so that data that went elsewhere says from where. `Content` is
what a LUN should hold; the LUN's server says what it does.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import programs

from emu.channel.channel import Channel, CommandTimeout
from emu.errors import NotHeld, RigError
from emu.images.cache import Cache
from emu.rig import RigLun

SECTOR = 512
"""The protocol's unit, whatever sectors a disk has."""
PAGE = 4096
MARK = 0x21736B61
SHOWN = 6
ENDED_WITHIN = 60.0
"""Seconds in which requests are answered."""
_ANSWER = re.compile(r"^(\d+) (-?\d+)(?: wrong (.*))?$")
_BEHIND = '( "$1" "$2" $3 < "$4" > "$4.answers" 2>&1; echo $? > "$4.ended" ) > /dev/null 2>&1 &'


def pieces(*shape: tuple[int, int]) -> str:
    """Memory of a request: of each piece where in a page it begins, and its bytes."""
    return ",".join(f"{memory}:{length}" for memory, length in shape)


def write(offset: int, generation: int, *shape: tuple[int, int], dsync: bool = False) -> str:
    """A write from `shape` to `offset`, in bytes; `dsync`: it lasts when it is answered."""
    return f"write {offset} {generation} {pieces(*shape)}{' dsync' if dsync else ''}"


def read(offset: int, generation: int, *shape: tuple[int, int]) -> str:
    """A read that is to bring sectors of `generation`."""
    return f"read {offset} {generation} {pieces(*shape)}"


@dataclass(frozen=True)
class Answer:
    """What became of a request: its `result`, bytes or -errno, and what was `wrong` with data."""

    asked: str
    result: int
    wrong: str

    @property
    def bytes(self) -> int:
        """How many bytes a read or write asks for."""
        return sum(int(length) for length in re.findall(r"\d:(\d+)", self.asked))

    @property
    def fault(self) -> str:
        """What is wrong with it, if it was to succeed."""
        if self.result != self.bytes:
            return f"{self.short}: answered with {self.result}, not with {self.bytes}"
        return f"{self.short}: {self.wrong}" if self.wrong else ""

    @property
    def short(self) -> str:
        """The request for a message."""
        return self.asked if len(self.asked) < 80 else f"{self.asked[:76]} …"


@dataclass(frozen=True)
class Begun:
    """Requests that were begun in the background."""

    asker: Asker
    requests: tuple[str, ...]
    file: str

    def ended(self) -> bool:
        """Whether all are answered."""
        return self.asker.channel.run(
            ["test", "-e", f"{self.file}.ended"], timeout=20, check=False
        ).ok

    def answers(self, timeout: float = ENDED_WITHIN) -> list[Answer]:
        """Wait until all are answered: the answers. `timeout` in seconds before scaling."""
        channel = self.asker.channel
        what = f"{len(self.requests)} requests to be answered"
        try:
            channel.wait_until("[ -e $1 ]", what, timeout, f"{self.file}.ended")
        except CommandTimeout:
            raise _unanswered(self.requests, self.asker.device, timeout) from None
        text = channel.run(["cat", f"{self.file}.answers"], timeout=20).text
        return _answers(self.requests, text)

    def answered(self) -> int:
        """How many are answered; those begun together are shown when all are."""
        return len(
            self.asker.channel.run(["cat", f"{self.file}.answers"], timeout=20).text.splitlines()
        )


class Asker:
    """Asks for I/O on a device of a guest."""

    def __init__(self, channel: Channel, device: str, cache: Cache) -> None:
        self.channel = channel
        self.device = device
        self._program = programs.put("ask", channel, cache)
        self._begun = 0

    def ask(
        self, *requests: str, together: bool = False, timeout: float = ENDED_WITHIN
    ) -> list[Answer]:
        """Ask for each when the one before is answered, or for all at once (`together`)."""
        words = [self._program, self.device, *(["together"] if together else [])]
        text = "".join(f"{request}\n" for request in requests)
        try:
            done = self.channel.run(words, input=text.encode(), timeout=timeout)
        except CommandTimeout:
            raise _unanswered(requests, self.device, timeout) from None
        return _answers(requests, done.text)

    def result(self, request: str) -> int:
        """What one request is answered with."""
        return self.ask(request)[0].result

    def begin(self, *requests: str, together: bool = False) -> Begun:
        """As `ask`, in the background."""
        self._begun += 1
        file = f"/tmp/asked.{self._begun}.{self.device.rpartition('/')[2]}"
        self.channel.put("".join(f"{request}\n" for request in requests).encode(), file)
        how = "together" if together else ""
        words = ["sh", "-c", _BEHIND, "sh", self._program, self.device, how, file]
        self.channel.run(words, timeout=20)
        return Begun(self, requests, file)


def _unanswered(requests: Sequence[str], device: str, timeout: float) -> NotHeld:
    return NotHeld(
        f"of {len(requests)} requests for {device} some are not answered after {timeout:.0f} s, "
        f"the first being {requests[0]}"
    )


def _answers(requests: Sequence[str], text: str) -> list[Answer]:
    found = [_ANSWER.match(line) for line in text.splitlines()]
    if not all(found) or len(found) != len(requests):
        raise RigError(
            f"{len(requests)} requests have {len(found)} answers", lines=text.splitlines()
        )
    return [
        Answer(asked, int(match[2]), match[3] or "")
        for asked, match in zip(requests, found, strict=True)
        if match
    ]


def faults(answers: Iterable[Answer]) -> list[str]:
    """What is wrong with answers of requests that were to succeed."""
    return [answer.fault for answer in answers if answer.fault]


def check_good(answers: Iterable[Answer]) -> None:
    """Requests that a test is built on were answered as done, with the right data."""
    wrong = faults(answers)
    assert not wrong, "requests that were to succeed did not: " + "; ".join(wrong[:SHOWN])


@lru_cache(maxsize=1 << 16)
def _data(sector: int, generation: int) -> bytes:
    if not generation:
        return bytes(SECTOR)
    return struct.pack("<QII", sector, generation, MARK) * (SECTOR // 16)


class Content:
    """What a LUN is to hold: zeros, but for what was written."""

    def __init__(self, lun: RigLun) -> None:
        self.lun = lun
        self._generations: dict[int, int] = {}

    def done(self, answers: Iterable[Answer]) -> list[Answer]:
        """Take over what was written with success; all of them, as a list."""
        answers = list(answers)
        for answer in answers:
            verb, offset, generation, *_ = (*answer.asked.split(" "), "", "")
            if verb == "write" and answer.result == answer.bytes:
                self.put(int(offset), answer.bytes, int(generation))
        return answers

    def put(self, offset: int, length: int, generation: int) -> None:
        """`length` bytes from `offset` on are of `generation` now."""
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            self._generations[sector] = generation

    def differences(self, offset: int, length: int) -> list[str]:
        """Where the LUN holds something else, of `length` bytes from `offset` on; a few at most."""
        per = self.lun.lun.sector // SECTOR
        first, count = offset // self.lun.lun.sector, length // self.lun.lun.sector
        wrong = []
        for block, found in enumerate(self.lun.sums(first, count), first):
            sectors = range(block * per, (block + 1) * per)
            data = b"".join(_data(one, self._generations.get(one, 0)) for one in sectors)
            if zlib.crc32(data) != found:
                wrong.append(block)
        more = [f"and {len(wrong) - SHOWN} blocks more"] if len(wrong) > SHOWN else []
        return [self._line(block, per) for block in wrong[:SHOWN]] + more

    def _line(self, block: int, per: int) -> str:
        generations = {self._generations.get(block * per + i, 0) for i in range(per)}
        meant = "zeros" if generations == {0} else f"generation {max(generations)}"
        return f"block {block} of LUN {self.lun.name} differs from what it should hold: {meant}"


def extents(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (first, number) as the fewest that cover the same blocks, in order."""
    merged: list[tuple[int, int]] = []
    for first, number in sorted(ranges):
        if merged and first <= merged[-1][0] + merged[-1][1]:
            begin, old = merged[-1]
            merged[-1] = begin, max(old, first + number - begin)
        else:
            merged.append((first, number))
    return merged
