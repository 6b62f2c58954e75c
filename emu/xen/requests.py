"""What the LUN server reports of its requests: those it served, and those outstanding.

The layouts are guest-images/handler/lun.h's: `struct record`, little-endian, each followed by
its CRC-32s (zlib's) and padded to 8 bytes. Text is that of verbs.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from emu.errors import RigError

_RECORD = struct.Struct("<QQQQIBBHII")
_OPERATIONS = {1: "read", 2: "write", 3: "flush", 4: "unmap", 5: "write-same"}
_PENDING = re.compile(r"^(\d+) ([a-z-]+) (\d+) (\d+) ([a-z]+) (\d+)$")


class Flag(IntFlag):
    """What became of a request beside being served."""

    HELD = 1
    DELAYED = 2
    FAILED = 4
    """A rule had it fail; nothing of it was done."""
    TORN = 8
    """A rule let only its first `written` blocks reach the LUN."""
    FUA = 16
    STOPPED = 32
    """It was held or delayed until the server was stopped, and served then."""


@dataclass(frozen=True)
class Request:
    """One request that was served. Blocks are the LUN's sectors; times are seconds of dom0's
    monotonic clock.

    `sequence` counts requests as they came, from 1; `number` counts them as they were served.
    `status` is 0 for one that was answered as done, else tcmu-runner's. `sums` are the CRC-32s
    of the blocks written or read, as far as they are known: of a write that was torn, of all
    that were asked for, of which `written` reached the LUN. A write-same has one.
    """

    number: int
    sequence: int
    operation: str
    lba: int
    blocks: int
    started: float
    ended: float
    status: int
    flags: Flag
    written: int
    sums: tuple[int, ...]

    @property
    def done(self) -> bool:
        """Whether it was answered as done (which a torn write may have been, too)."""
        return self.status == 0

    @property
    def writes(self) -> bool:
        """Whether it was to change the LUN."""
        return self.operation in ("write", "unmap", "write-same")

    @property
    def held(self) -> bool:
        """Whether it waited to be released."""
        return Flag.HELD in self.flags

    def __str__(self) -> str:
        words = [f"request {self.sequence}: {self.operation} of {blocks(self.lba, self.blocks)}"]
        words += [flag.name.lower() for flag in Flag if flag in self.flags and flag.name]
        return ", ".join(words + ([] if self.done else ["answered with an error"]))


@dataclass(frozen=True)
class Records:
    """Requests in the order in which they were served; the next one will have number `next`.

    `dropped` were forgotten for room before they were read; `sector` is in bytes.
    """

    requests: tuple[Request, ...]
    next: int
    dropped: int
    sector: int

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def writes(self) -> tuple[Request, ...]:
        """Those that were to change the LUN."""
        return tuple(request for request in self.requests if request.writes)


@dataclass(frozen=True)
class Pending:
    """One request that waits at the LUN. `state`: running, held, delayed or released; `age` in
    seconds."""

    sequence: int
    operation: str
    lba: int
    blocks: int
    state: str
    age: float


def blocks(first: int, count: int) -> str:
    """Blocks as people write them."""
    return f"block {first}" if count == 1 else f"blocks {first}–{first + count - 1}"


def parse_answer(data: bytes) -> tuple[dict[str, int], bytes]:
    """The values of an answer's first line, and what follows it. Raises RigError."""
    line, newline, rest = data.partition(b"\n")
    words = line.decode(errors="replace").split(" ")
    if words[0] != "ok" or not newline:
        raise RigError(f"the LUN server's answer makes no sense: {line[:80]!r}")
    return {key: int(value) for key, _, value in (word.partition("=") for word in words[1:])}, rest


def parse_records(data: bytes) -> Records:
    """Read the answer to `records`. Raises RigError when it is not whole."""
    header, body = parse_answer(data)
    if len(body) != header["bytes"]:
        raise RigError(f"{len(body)} bytes of records came, not {header['bytes']}")
    requests: list[Request] = []
    at = 0
    while at < len(body):
        number = header["first"] + len(requests)
        try:
            sequence, started, ended, lba, count, operation, status, flags, written, n = (
                _RECORD.unpack_from(body, at)
            )
            sums = struct.unpack_from(f"<{n}I", body, at + _RECORD.size)
        except struct.error:
            raise RigError(f"the record of request number {number} is cut off") from None
        at += (_RECORD.size + 4 * n + 7) & ~7
        requests.append(
            Request(
                number, sequence, _OPERATIONS[operation], lba, count, started / 1e9, ended / 1e9,
                status, Flag(flags), written, sums,
            )
        )  # fmt: skip
    if len(requests) != header["next"] - header["first"]:
        raise RigError(f"{len(requests)} records came, not {header['next'] - header['first']}")
    return Records(tuple(requests), header["next"], header["dropped"], header["sector"])


def parse_pending(data: bytes) -> tuple[Pending, ...]:
    """Read the answer to `list`, in the order in which the requests came."""
    _, body = parse_answer(data)
    matches = [_PENDING.match(line) for line in body.decode().splitlines()]
    if not all(matches):
        raise RigError("the LUN server's list of requests makes no sense", lines=[body.decode()])
    return tuple(
        Pending(int(m[1]), m[2], int(m[3]), int(m[4]), m[5], int(m[6]) / 1000) for m in matches if m
    )


def parse_sums(data: bytes) -> tuple[int, ...]:
    """Read the answer to `sums`: the CRC-32 of each block."""
    header, body = parse_answer(data)
    if len(body) != header["bytes"]:
        raise RigError(f"{len(body)} bytes of sums came, not {header['bytes']}")
    return struct.unpack(f"<{len(body) // 4}I", body)
