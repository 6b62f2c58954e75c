"""Parsers of the LUN server's and emu-io's output, on transcripts."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from emu.errors import RigError
from emu.xen.account import parse_account
from emu.xen.requests import Flag, parse_answer, parse_pending, parse_records, parse_sums

TRANSCRIPTS = Path(__file__).parent / "transcripts"


def transcript(name: str) -> bytes:
    return (TRANSCRIPTS / name).read_bytes()


def test_records() -> None:
    records = parse_records(transcript("moved-records.bin"))
    assert records.sector == 512
    assert not records.dropped
    assert records.next == records.requests[-1].number + 1
    # Not served in order of arrival: writes were held, reads were not.
    assert sorted(r.sequence for r in records) == [r.number for r in records]
    assert [r.sequence for r in records] != [r.number for r in records]
    held = [request for request in records if request.held]
    assert [request.lba for request in held] == [32, 48, 80, 96, 112, 128, 144, 160]
    assert all(request.ended - request.started > 0.1 for request in held)
    assert {len(request.sums) for request in records.writes} == {8}
    assert "write of blocks 32–39, held" in str(held[0])


def test_records_of_torn_writes() -> None:
    torn = [r for r in parse_records(transcript("torn-records.bin")) if Flag.TORN in r.flags]
    assert torn
    assert {(request.lba, request.blocks, request.written) for request in torn} == {(112, 8, 3)}
    assert all(request.done for request in torn)


def test_pending() -> None:
    pending = parse_pending(transcript("lun-list.txt"))
    assert len(pending) == 8
    first = pending[0]
    assert (first.sequence, first.operation, first.lba, first.blocks) == (87, "write", 32, 8)
    assert (first.state, first.age) == ("held", 0.119)


def test_account() -> None:
    account = parse_account(transcript("moved-account.bin"))
    assert (account.size, account.blocks, account.stride) == (4096, 12, 8192)
    assert account.state == "stopped"
    assert account.end == 11 * 8192 + 4096
    assert not account.in_flight
    assert not account.failed
    writes = [asked for asked in account.asked if asked.writes]
    assert len(writes) == 274
    # A block's generations are written in order, each once.
    for block in range(12):
        generations = [asked.generation for asked in writes if asked.block == block]
        assert generations == sorted(set(generations))


def test_content_matches_lun_records() -> None:
    account = parse_account(transcript("moved-account.bin"))
    records = parse_records(transcript("moved-records.bin"))
    first = next(asked for asked in account.asked if asked.writes)
    brought = next(r for r in records if r.lba == first.block * 16)
    assert account.sums(first.block, first.generation, 512) == brought.sums
    assert account.sums(first.block, first.generation, 4096) == (
        zlib.crc32(account.content(first.block, first.generation)),
    )


def test_account_in_flight() -> None:
    whole = transcript("moved-account.bin")
    # The same before the last three completions.
    count = int.from_bytes(whole[40:48], "little")
    cut = whole[:40] + (count - 3).to_bytes(8, "little") + whole[48:-48]
    in_flight = parse_account(cut).in_flight
    assert len(in_flight) == 3
    assert all(asked.result is None for asked in in_flight)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda data: data[:-1], "bytes of records came"),
        (lambda data: data.replace(b"ok ", b"no ", 1), "makes no sense"),
        (lambda data: data.replace(b"next=", b"next=9", 1), "records came, not 9"),
    ],
)
def test_damaged_records(damaged, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RigError, match=message):
        parse_records(damaged(transcript("torn-records.bin")))


def test_damaged_output_is_refused() -> None:
    with pytest.raises(RigError, match="cut off, or none"):
        parse_account(transcript("moved-account.bin")[:-1])
    with pytest.raises(RigError, match="not even its head"):
        parse_account(b"")
    with pytest.raises(RigError, match="bytes of sums came"):
        parse_sums(transcript("torn-sums.bin")[:-4])
    with pytest.raises(RigError, match="list of requests makes no sense"):
        parse_pending(b"ok outstanding=1\n7 writes somewhere\n")
    with pytest.raises(RigError, match="makes no sense"):
        parse_answer(b"")
