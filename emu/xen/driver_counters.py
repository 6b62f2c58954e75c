"""What drivers with counters have counted in a guest: /proc/emu-gcov of guest-images/coverage/.

emu-gcov 1 6a186486f4ef15e6
unit 0x4232322a 0x1f9ba8e9 0xef27bf1e xen-blkfront.gcda
fn 0x38b7a339 0x92244c20 0xbaef4a7f 1 1 0*2 1
end
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from emu.channel.channel import Channel, CommandFailed
from emu.errors import RigError

PATH = "/proc/emu-gcov"
READ_WITHIN = 10.0
"""Seconds, before scaling, for a guest that answers at all to show its counters."""
_VERSION = "1"


@dataclass(frozen=True)
class Function:
    """A function's identity (gcc's ident, checksum of its line, of its flow) and its counters."""

    identity: tuple[int, int, int]
    counters: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """One source file of a driver: `version` and `stamp`, `checksum` are of gcc's notes for it."""

    version: int
    stamp: int
    checksum: int
    file: str
    functions: tuple[Function, ...]

    @property
    def notes(self) -> tuple[str, int]:
        """What tells its notes (.gcno) from others: their name, and the stamp in them."""
        return self.file.removesuffix(".gcda") + ".gcno", self.stamp

    def plus(self, other: Unit) -> Unit:
        """The same unit with the counters of both. Raises RigError for another unit."""
        if (self.notes, self.checksum) != (other.notes, other.checksum):
            raise RigError(f"counters of {self.file} and of {other.file} are not of one build")
        both = zip(self.functions, other.functions, strict=True)
        functions = (
            Function(a.identity, tuple(x + y for x, y in zip(a.counters, b.counters, strict=True)))
            for a, b in both
        )
        return replace(self, functions=tuple(functions))


@dataclass(frozen=True)
class Counted:
    """All that one guest has counted; `guest` is a number that a save or migration keeps."""

    guest: str
    units: tuple[Unit, ...]


def read(channel: Channel) -> Counted | None:
    """What a guest has counted; None for one without counters. Raises as `Channel.run`."""
    try:
        return parse(channel.run(["cat", PATH], timeout=READ_WITHIN).text)
    except CommandFailed as failed:
        if b"No such file" in failed.result.stderr:
            return None
        raise


def parse(text: str) -> Counted:
    """Read the text of /proc/emu-gcov. Raises RigError for one that is cut off, or another."""
    lines = text.splitlines()
    head = lines[0].split() if lines else []
    if len(head) != 3 or head[:2] != ["emu-gcov", _VERSION]:
        raise RigError(f"{PATH} begins with {' '.join(head)!r}, not with emu-gcov {_VERSION}")
    if lines[-1] != "end":
        raise RigError(f"{PATH} ends with {lines[-1]!r}: it was cut off")
    units: list[Unit] = []
    for number, line in enumerate(lines[1:-1], 2):
        kind, *words = line.split()
        try:
            if kind == "unit":
                version, stamp, checksum = (int(word, 16) for word in words[:3])
                units.append(Unit(version, stamp, checksum, words[3], ()))
            elif kind == "fn" and units:
                ident, lineno, cfg = (int(word, 16) for word in words[:3])
                function = Function((ident, lineno, cfg), tuple(_counters(words[3:])))
                units[-1] = replace(units[-1], functions=(*units[-1].functions, function))
            else:
                raise ValueError(kind)
        except (ValueError, IndexError) as error:
            raise RigError(f"{PATH}, line {number}: {line!r} can't be read: {error}") from None
    return Counted(head[2], tuple(units))


def total(all_of: Iterable[Counted]) -> list[Unit]:
    """The counters of several guests added up: of one guest the last that was read counts."""
    guests = {one.guest: one for one in all_of}
    sums: dict[tuple[str, int], Unit] = {}
    for one in guests.values():
        for unit in one.units:
            known = sums.get(unit.notes)
            sums[unit.notes] = unit if known is None else known.plus(unit)
    return list(sums.values())


def _counters(words: Iterable[str]) -> Iterable[int]:
    """Numbers; "0*4" are four zeros."""
    for word in words:
        count, _, times = word.partition("*")
        yield from [int(count)] * int(times or 1)
