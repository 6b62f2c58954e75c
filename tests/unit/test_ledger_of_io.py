"""The comparison of a guest's account with a LUN: on recorded runs, and on any history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import InputError, RigError
from emu.xen.account import Asked, IoAccount, parse_account
from emu.xen.ioledger import IoLedger, compare
from emu.xen.requests import Flag, Records, Request, parse_records, parse_sums

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SECTOR, SIZE, BLOCKS = 512, 1024, 4
STRIDE = 2 * SIZE


def recorded(name: str) -> tuple[IoAccount, Records, tuple[int, ...]]:
    return (
        parse_account((TRANSCRIPTS / f"{name}-account.bin").read_bytes()),
        parse_records((TRANSCRIPTS / f"{name}-records.bin").read_bytes()),
        parse_sums((TRANSCRIPTS / f"{name}-sums.bin").read_bytes()),
    )


def test_run_with_a_restore() -> None:
    ledger = compare(*recorded("moved"))
    assert ledger.held
    assert ledger.table() == []
    # Eight writes were held when the guest was saved, were served, and were asked for again.
    assert {(each.asked.block, each.times) for each in ledger.repeated} == {
        (block, 2) for block in (2, 3, 5, 6, 7, 8, 9, 10)
    }
    summary = "274 writes were acknowledged and are on the LUN, 8 came more than once"
    assert ledger.summary() == summary


def test_run_with_torn_writes() -> None:
    ledger = compare(*recorded("torn"))
    assert ledger.summary() == "198 writes were acknowledged, but the LUN differs: 1 torn"
    assert ledger.table() == [
        "block 7      torn         generation 21 was acknowledged, the LUN holds generation 21 in "
        "sectors 0–2; generation 11 in sectors 3–7 (request 585: write of blocks 112–119, torn, "
        "3 of 8 sectors written)"
    ]


def test_run_with_lost_writes() -> None:
    ledger = compare(*recorded("lost"))
    assert ledger.kinds() == {"lost": 1}
    assert "generation 29 was acknowledged, the LUN holds generation 10" in ledger.table()[0]


def test_incomplete_records_are_no_verdict() -> None:
    account, records, sums = recorded("moved")
    with pytest.raises(RigError, match="dropped 3 records"):
        compare(account, replace(records, dropped=3), sums)
    with pytest.raises(InputError, match="10 sums do not reach the account's end"):
        compare(account, records, sums[:10])


@dataclass
class History:
    """A guest and a LUN that obeys, one write after the other."""

    asked: list[Asked] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    @property
    def account(self) -> IoAccount:
        return IoAccount(7, SIZE, BLOCKS, 0, STRIDE, "stopped", 0, tuple(self.asked))

    def ask(self, block: int, result: int | None) -> Asked:
        generation = 1 + sum(asked.block == block for asked in self.asked)
        made = Asked(len(self.asked), True, block, generation, 0.0, result)
        self.asked.append(made)
        return made

    def serve(self, asked: Asked, *, split: bool = False, good: bool = True) -> None:
        sums = self.account.sums(asked.block, asked.generation, SECTOR)
        first = asked.block * STRIDE // SECTOR
        pieces = [(0, 1), (1, 2)] if split else [(0, 2)]
        for start, end in pieces:
            self.add(first + start, sums[start:end], good=good)

    def add(self, lba: int, sums: tuple[int, ...], *, good: bool = True, **more: object) -> None:
        number = len(self.requests) + 1
        made = Request(
            number, number, "write", lba, len(sums), 0.0, 0.0, 0 if good else 13, Flag(0),
            len(sums) if good else 0, sums,
        )  # fmt: skip
        self.requests.append(replace(made, **more))  # type: ignore[arg-type]

    def sums(self) -> list[int]:
        held = [0] * (BLOCKS * STRIDE // SECTOR)
        for request in self.requests:
            held[request.lba : request.lba + request.written] = request.sums[: request.written]
        return held

    def judge(self, sums: list[int] | None = None) -> IoLedger:
        requests = tuple(self.requests)
        records = Records(requests, len(requests) + 1, 0, SECTOR)
        return compare(self.account, records, sums or self.sums())


writes = st.lists(
    st.tuples(
        st.integers(0, BLOCKS - 1),
        st.sampled_from(["done", "split", "repeated", "failed", "failed but there", "no answer"]),
    ),
    max_size=25,
)


def play(steps: list[tuple[int, str]]) -> History:
    history = History()
    for block, fate in steps:
        result = {"failed": -5, "failed but there": -5, "no answer": None}.get(fate, SIZE)
        asked = history.ask(block, result)
        if fate == "failed":
            history.serve(asked, good=False)
        elif fate != "no answer":
            history.serve(asked, split=fate == "split")
        if fate == "repeated":
            history.serve(asked)
    return history


def acknowledged(history: History) -> list[Asked]:
    return [asked for asked in history.asked if asked.result == SIZE]


@given(writes)
def test_faithful_lun_passes(steps: list[tuple[int, str]]) -> None:
    ledger = play(steps).judge()
    assert ledger.held, ledger.table()
    fates = [fate for _, fate in steps]
    assert ledger.acknowledged == sum(fate in ("done", "split", "repeated") for fate in fates)
    assert len(ledger.repeated) == fates.count("repeated")
    assert len(ledger.in_flight) == fates.count("no answer")
    assert len(ledger.failed) == fates.count("failed") + fates.count("failed but there")


@given(writes, st.data())
def test_write_that_never_came_is_lost(steps: list[tuple[int, str]], data: st.DataObject) -> None:
    history = play(steps)
    if not (writes := acknowledged(history)):
        return
    gone = data.draw(st.sampled_from(writes))
    sums = history.account.sums(gone.block, gone.generation, SECTOR)
    history.requests = [r for r in history.requests if not set(r.sums) & set(sums)]
    ledger = history.judge()
    assert [(d.kind, d.block) for d in ledger.differences] == [("lost", gone.block)]
    assert f"generation {gone.generation} was acknowledged, but nothing" in ledger.table()[0]


@given(writes, st.data())
def test_late_old_write_is_reported(steps: list[tuple[int, str]], data: st.DataObject) -> None:
    history = play(steps)
    old = [
        asked
        for asked in acknowledged(history)
        if any(a.block == asked.block and a.number > asked.number for a in acknowledged(history))
    ]
    if not old:
        return
    late = data.draw(st.sampled_from(old))
    history.serve(late)
    ledger = history.judge()
    assert ledger.kinds() == {"stale": 1, "overwritten": 1}
    assert {difference.block for difference in ledger.differences} == {late.block}


@given(writes, st.integers(0, BLOCKS * 2 - 1))
def test_unasked_write_is_reported(steps: list[tuple[int, str]], place: int) -> None:
    history = play(steps)
    history.add(place * SIZE // SECTOR, (1, 2))
    assert "unasked" in history.judge().kinds()


@given(writes, st.data())
def test_content_without_a_write_is_reported(
    steps: list[tuple[int, str]], data: st.DataObject
) -> None:
    history = play(steps)
    if not (writes := acknowledged(history)):
        return
    block = data.draw(st.sampled_from(writes)).block
    sums = history.sums()
    sums[block * STRIDE // SECTOR + data.draw(st.integers(0, 1))] = 12345
    ledger = history.judge(sums)
    assert [(d.kind, d.block) for d in ledger.differences] == [("wrong", block)]
    assert "nothing known in sector" in ledger.table()[0]


@given(writes, st.data())
def test_torn_write_is_reported(steps: list[tuple[int, str]], data: st.DataObject) -> None:
    history = play(steps)
    block = data.draw(st.integers(0, BLOCKS - 1))
    before = [asked for asked in acknowledged(history) if asked.block == block]
    asked = history.ask(block, SIZE)
    sums = history.account.sums(block, asked.generation, SECTOR)
    history.add(block * STRIDE // SECTOR, sums, flags=Flag.TORN, written=1)
    ledger = history.judge()
    assert [(d.kind, d.block) for d in ledger.differences] == [("torn", block)]
    assert "1 of 2 sectors written" in ledger.table()[0]
    assert before or "in sector 1" in ledger.table()[0]


def test_misread_is_reported() -> None:
    history = play([(0, "done"), (0, "done")])
    history.asked.append(Asked(2, False, 0, 2, 0.0, -84, (0, 1, 512)))
    ledger = history.judge()
    assert ledger.table() == [
        "block 0      misread      the guest read generation 1 of block 0 from byte 512 on, "
        "not generation 2"
    ]
    assert not ledger.failed


def test_long_table_is_cut() -> None:
    history = play([(0, "done")])
    for n in range(20):
        history.add(2, (1000 + n, 2000 + n))
    table = history.judge().table()
    assert len(table) == 13
    assert table[-1] == "… and 8 more"
