"""The I/O ledger: the guest's account against what the LUN was asked, and holds.

Everything is compared sector by sector, so it does not matter how requests were split or
merged on their way. No two requests of an account are for one block at a time, hence a
block's generations are in the order in which they were asked for and answered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emu.errors import InputError, RigError
from emu.xen.account import Asked, IoAccount
from emu.xen.requests import Flag, Records, Request, blocks

SHOWN = 12
"""Rows of a table of differences; the rest is counted."""


@dataclass(frozen=True)
class IoDifference:
    """One thing that is not as it should be. `kind`: lost, overwritten, torn, wrong, unasked,
    stale, misread; `found` describes what was found."""

    kind: str
    block: int | None
    found: str


@dataclass(frozen=True)
class Repeated:
    """A write of the guest that reached the LUN `times` times."""

    asked: Asked
    times: int


@dataclass(frozen=True)
class IoLedger:
    """The outcome. `acknowledged` writes were counted; `differences` are none where all held.

    `repeated` writes and those still `in_flight` are no faults by themselves; `failed` requests
    are those that the guest got an error for.
    """

    acknowledged: int
    verified: int
    differences: tuple[IoDifference, ...]
    repeated: tuple[Repeated, ...]
    in_flight: tuple[Asked, ...]
    failed: tuple[Asked, ...]

    @property
    def held(self) -> bool:
        """Whether the LUN holds what was acknowledged to the guest, and nothing else."""
        return not self.differences

    def kinds(self) -> dict[str, int]:
        """How many differences there are of each kind."""
        return dict(Counter(difference.kind for difference in self.differences))

    def summary(self) -> str:
        """One line: what differs, or that nothing does."""
        text = f"{self.acknowledged} writes were acknowledged"
        if self.held:
            return f"{text} and are on the LUN, {len(self.repeated)} came more than once"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds().items())
        return f"{text}, but the LUN differs: {kinds}"

    def table(self) -> list[str]:
        """A line for each difference, by block."""
        rows = sorted(self.differences, key=lambda each: (each.block is None, each.block or 0))
        lines = [
            f"{'' if row.block is None else f'block {row.block}':<12} {row.kind:<12} {row.found}"
            for row in rows[:SHOWN]
        ]
        return lines + ([f"… and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])


def compare(account: IoAccount, records: Records, sums: Sequence[int]) -> IoLedger:
    """Judge an account by the LUN's records since before it was begun, and by the CRC-32 of
    every sector that the LUN holds now, up to the account's end.

    Raises RigError where the records are not complete, InputError where `sums` are too few.
    """
    if records.dropped:
        raise RigError(
            f"the LUN server dropped {records.dropped} records for room before they were read",
            hint="read them more often (RigLun.requests), or record for a shorter time",
        )
    if account.end > len(sums) * records.sector:
        raise InputError(f"{len(sums)} sums do not reach the account's end at {account.end}")
    return _Comparison(account, records, sums).judge()


class _Comparison:
    """One comparison at work: what each sector may hold, and what requests made of it."""

    def __init__(self, account: IoAccount, records: Records, sums: Sequence[int]) -> None:
        self.account = account
        self.records = records
        self.sums = sums
        self.sector = records.sector
        self.per_block = account.size // self.sector
        self.writes: dict[int, list[Asked]] = defaultdict(list)
        self.generations: dict[tuple[int, int], int] = {}
        """Sector and sum → the generation of its block with which it has that sum."""
        for asked in account.asked:
            if not asked.writes:
                continue
            self.writes[asked.block].append(asked)
            first = self.first(asked.block)
            for at, crc in enumerate(account.sums(asked.block, asked.generation, self.sector)):
                self.generations[first + at, crc] = asked.generation
        self.differences: list[IoDifference] = []
        self.arrived: Counter[tuple[int, int]] = Counter()
        """Block and generation → sectors that requests answered as done brought."""
        self.last: dict[int, Request] = {}
        """Sector → the request that wrote it last."""

    def first(self, block: int) -> int:
        """The first sector of a block."""
        return (self.account.start + block * self.account.stride) // self.sector

    def block_at(self, sector: int) -> int | None:
        """The block that a sector belongs to; None between and behind the blocks."""
        at = sector * self.sector - self.account.start
        block, within = divmod(at, self.account.stride)
        there = at >= 0 and within < self.account.size and block < self.account.blocks
        return block if there else None

    def judge(self) -> IoLedger:
        newest: dict[int, int] = {}
        for request in self.records.writes:
            self._take(request, newest)
        for block, writes in self.writes.items():
            self._judge_block(block, writes)
        for asked in self.account.asked:
            if asked.found is not None:
                self._misread(asked)
        writes = [asked for each in self.writes.values() for asked in each]
        repeated = (
            Repeated(asked, self.arrived[asked.block, asked.generation] // self.per_block)
            for asked in writes
        )
        return IoLedger(
            acknowledged=sum(map(self._acknowledged, writes)),
            verified=sum(
                not asked.writes and asked.result == self.account.size
                for asked in self.account.asked
            ),
            differences=tuple(self.differences),
            repeated=tuple(each for each in repeated if each.times > 1),
            in_flight=self.account.in_flight,
            failed=self.account.failed,
        )

    def _acknowledged(self, asked: Asked) -> bool:
        return asked.result == self.account.size

    def _take(self, request: Request, newest: dict[int, int]) -> None:
        """One request of the LUN: is it the guest's, and does it come in order?"""
        strange, stale = [], {}
        for at in range(request.blocks):
            sector = request.lba + at
            generation = self._generation(request, at)
            block = self.block_at(sector)
            if generation is None or block is None:
                strange.append(sector)
            elif request.done:
                self.arrived[block, generation] += 1
            if at >= request.written:
                continue
            self.last[sector] = request
            if generation is not None:
                if generation < newest.get(sector, 0):
                    stale[block] = generation, newest[sector]
                newest[sector] = generation
        if strange:
            where = "what it brought" if self.block_at(strange[0]) is not None else "that place"
            self._differs(
                "unasked",
                self.block_at(strange[0]),
                f"{request}: the guest did not ask for {where} at {_ranges(strange)}",
            )
        for stale_block, (old, new) in stale.items():
            self._differs(
                "stale",
                stale_block,
                f"generation {old} was written after generation {new} ({request})",
            )

    def _generation(self, request: Request, at: int) -> int | None:
        if request.operation != "write" or at >= len(request.sums):
            return None
        return self.generations.get((request.lba + at, request.sums[at]))

    def _judge_block(self, block: int, writes: list[Asked]) -> None:
        acknowledged = [asked for asked in writes if self._acknowledged(asked)]
        lost = [
            asked
            for asked in acknowledged
            if self.arrived[block, asked.generation] < self.per_block
        ]
        for asked in lost:
            self._differs(
                "lost",
                block,
                f"generation {asked.generation} was acknowledged, but "
                f"{self._how_much(asked)} of it came to the LUN",
            )
        if not acknowledged or acknowledged[-1] in lost:
            return
        last = acknowledged[-1].generation
        allowed = {asked.generation for asked in writes if asked.generation >= last}
        found = self._found(block)
        if set(found) <= allowed:
            # Several generations in one block: each a write that was not acknowledged.
            return
        kind, why = self._why(block, last, found)
        self._differs(kind, block, f"generation {last} was acknowledged, the LUN holds {why}")

    def _found(self, block: int) -> list[int | None]:
        """The generation that each sector of a block holds; None for what is of none."""
        first = self.first(block)
        return [
            self.generations.get((sector, self.sums[sector]))
            for sector in range(first, first + self.per_block)
        ]

    def _why(self, block: int, last: int, found: list[int | None]) -> tuple[str, str]:
        first = self.first(block)
        held = "; ".join(_runs(found))
        wrong = next(at for at, each in enumerate(found) if each is None or each < last)
        writer = self.last.get(first + wrong)
        cause = next(
            (
                request
                for request in reversed(self.records.writes)
                if Flag.TORN in request.flags
                and request.lba <= first + wrong < request.lba + request.blocks
                and self._generation(request, first + wrong - request.lba) == last
            ),
            None,
        )
        if cause is not None:
            kind = "torn" if cause.written else "lost"
            return kind, f"{held} ({cause}, {cause.written} of {cause.blocks} sectors written)"
        if writer is None:
            return "wrong", f"{held}, which no request wrote"
        brought = self._generation(writer, first + wrong - writer.lba)
        if brought is not None and brought == found[wrong]:
            return "overwritten", f"{held}, last written by {writer}"
        return "wrong", f"{held}, though {writer} brought generation {brought}"

    def _how_much(self, asked: Asked) -> str:
        came = self.arrived[asked.block, asked.generation]
        return "nothing" if not came else f"only {came} of {self.per_block} sectors"

    def _misread(self, asked: Asked) -> None:
        assert asked.found is not None
        block, generation, at = asked.found
        held = f"generation {generation} of block {block}" if generation else "nothing of its own"
        self._differs(
            "misread",
            asked.block,
            f"the guest read {held} from byte {at} on, not generation {asked.generation}",
        )

    def _differs(self, kind: str, block: int | None, found: str) -> None:
        self.differences.append(IoDifference(kind, block, found))


def _runs(found: Iterable[int | None]) -> list[str]:
    """ "generation 4 in sectors 0–2", and so on."""
    runs: list[tuple[int | None, list[int]]] = []
    for at, generation in enumerate(found):
        if not runs or runs[-1][0] != generation:
            runs.append((generation, []))
        runs[-1][1].append(at)
    return [
        f"{'nothing known' if generation is None else f'generation {generation}'} "
        f"in {_ranges(sectors, 'sector')}"
        for generation, sectors in runs
    ]


def _ranges(numbers: Sequence[int], what: str = "") -> str:
    """The range from the first to the last."""
    text = blocks(numbers[0], numbers[-1] - numbers[0] + 1)
    return text.replace("block", what) if what else text
