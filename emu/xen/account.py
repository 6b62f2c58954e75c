"""The guest's account: what emu-io asked of a disk, and the answers it got.

The layout is guest-images/agent/io.h's. What a block holds follows from its number and its
generation (`content`), so that both ends of the ring can be compared without the data.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace

from emu.errors import GuestError

_HEADER = struct.Struct("<IIIIQQIIQQQ")
_EVENT = struct.Struct("<BxHIIi")
_MAGIC = 0x316F6975
_WRITE, _READ, _ENDED, _FOUND = 1, 2, 3, 4
_STATES = {1: "running", 2: "stopped", 3: "full", 4: "broken"}
UNIT = 512
"""Bytes in which a block's content repeats its pattern."""


@dataclass(frozen=True)
class Asked:
    """A write or a read of one block. `result`: bytes, or -errno; None while it is in flight.

    `generation` is what it writes, or what it has to read; `found` is, for a read that found
    something else, the block and the generation found (0: none of this account) and the first
    wrong byte. `at` is in seconds since the account was begun.
    """

    number: int
    writes: bool
    block: int
    generation: int
    at: float
    result: int | None = None
    found: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class IoAccount:
    """All of it. Block number b is `size` bytes at `start` + b × `stride` of the disk.

    `state`: running, stopped, full (of as many events as it was made for), broken (by `error`,
    an errno of emu-io's own).
    """

    seed: int
    size: int
    blocks: int
    start: int
    stride: int
    state: str
    error: int
    asked: tuple[Asked, ...]

    @property
    def in_flight(self) -> tuple[Asked, ...]:
        """What was asked for and not answered."""
        return tuple(each for each in self.asked if each.result is None)

    @property
    def failed(self) -> tuple[Asked, ...]:
        """What was answered with an error, or only in part."""
        return tuple(
            each for each in self.asked if each.result not in (None, self.size) and not each.found
        )

    @property
    def end(self) -> int:
        """The first byte of the disk after all blocks."""
        return self.start + (self.blocks - 1) * self.stride + self.size

    def content(self, block: int, generation: int) -> bytes:
        """What a block holds in one generation."""
        units = range(self.size // UNIT)
        words = (struct.pack("<4I", self.seed, block, generation, unit) for unit in units)
        return b"".join(word * (UNIT // len(word)) for word in words)

    def sums(self, block: int, generation: int, sector: int) -> tuple[int, ...]:
        """The CRC-32s of its sectors."""
        content = self.content(block, generation)
        return tuple(zlib.crc32(content[at : at + sector]) for at in range(0, len(content), sector))


def parse_account(data: bytes) -> IoAccount:
    """Read an account, of a program that runs or has ended. Raises GuestError."""
    if len(data) < _HEADER.size:
        raise GuestError(f"the guest's account has {len(data)} bytes, not even its head")
    magic, seed, size, blocks, start, stride, state, _, count, _, error = _HEADER.unpack_from(data)
    if magic != _MAGIC or len(data) < _HEADER.size + count * _EVENT.size:
        raise GuestError("the guest's account is cut off, or none")
    asked: list[Asked] = []
    current: dict[int, int] = {}
    results: dict[int, int] = {}
    found: dict[int, tuple[int, int, int]] = {}
    body = data[_HEADER.size : _HEADER.size + count * _EVENT.size]
    for kind, tag, block, generation, result in _EVENT.iter_unpack(body):
        if kind in (_WRITE, _READ):
            current[tag] = len(asked)
            asked.append(Asked(len(asked), kind == _WRITE, block, generation, result / 1000))
        elif kind == _ENDED:
            results[current.pop(tag)] = result
        elif kind == _FOUND:
            found[current[tag]] = block, generation, result
    return IoAccount(
        seed, size, blocks, start, stride, _STATES.get(state, str(state)), error,
        tuple(
            replace(each, result=results.get(each.number), found=found.get(each.number))
            for each in asked
        ),
    )  # fmt: skip
