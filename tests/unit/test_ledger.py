"""The ledger's views, on what emu-grants, lsevtchn and /proc printed on the real stack."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from emu.errors import RigError
from emu.xen import granted, ledger, memory, xenstore
from emu.xen.grants import Grant
from emu.xen.ledger import Books, DomainBooks
from emu.xen.memory import Memory

TRANSCRIPTS = Path(__file__).parent / "transcripts"
IDLE = """version 1
frames 1 64
entry 0 0x19 0 0x3ee02
entry 1 0x19 0 0x3ee01
entry 8 0x19 0 0x3b895
"""
ATTACHED = IDLE + "entry 9 0x19 0 0x3b973\nentry 10 0x19 0 0x3b306\n"
FREE_503 = "free 503\nsize 512\nframes 1\ntaken 8-8\ndeferred\nleaked 0\n"
FREE_501 = "free 501\nsize 512\nframes 1\ntaken 8-10\ndeferred\nleaked 0\n"
BASE = "/local/domain/1/device"
KEYS = {
    f"{BASE}/vbd/51712/ring-ref": "9",
    f"{BASE}/vbd/51728/queue-1/ring-ref3": "40",
    f"{BASE}/console/1/ring-ref": "8",
    f"{BASE}/vbd/51712/protocol": "x86_64-abi",
}


class TestGranted:
    def test_table(self) -> None:
        table = granted.parse_table(ATTACHED, 1)
        assert (table.version, table.frames, table.max_frames) == (1, 1, 64)
        assert table.refs == {0, 1, 8, 9, 10}
        assert table.entries[3].use == "read and written"
        assert (table.entries[3].to, table.entries[3].frame) == (0, 0x3B973)

    def test_account(self) -> None:
        account = granted.parse_account(FREE_501)
        assert (account.free, account.size, account.leaked) == (501, 512, 0)
        assert account.taken == frozenset({8, 9, 10})
        assert account.deferred == ()

    def test_account_of_a_kernel_without_a_map(self) -> None:
        account = granted.parse_account("free 501\nsize 512\nframes 1\ndeferred 9\n")
        assert (account.taken, account.leaked, account.deferred) == (None, None, (9,))
        assert account.idle(granted.parse_table(IDLE, 1)) == 2

    def test_references_that_grant_nothing(self) -> None:
        account = granted.parse_account(FREE_501)
        assert account.idle(granted.parse_table(ATTACHED, 1)) == 0
        assert account.idle_refs(granted.parse_table(IDLE, 1)) == {9, 10}

    @pytest.mark.parametrize("text", ["", "version 3\nframes 1 2\n", "entry 9\n", "nonsense 1\n"])
    def test_no_table(self, text: str) -> None:
        with pytest.raises(RigError):
            granted.parse_table(text, 1)

    @pytest.mark.parametrize("text", ["", "free 3\nsize 4\n", "free many\nsize 4\nframes 1\n"])
    def test_no_account(self, text: str) -> None:
        with pytest.raises(RigError):
            granted.parse_account(text)


def mapped(*refs: int) -> tuple[Grant, ...]:
    return tuple(Grant(ref, 0, 0x1000 + ref, 1, 0x1000 + ref, 0x19) for ref in refs)


def books(table: str, account: str, *refs: int, domid: int = 1, name: str = "u1") -> Books:
    purposes = ledger.purposes(xenstore.XenstoreTree(BASE, MappingProxyType(KEYS)))
    entries = granted.parse_table(table, domid)
    known = {ref: word for ref, word in purposes.items() if ref in entries.refs}
    one = DomainBooks(name, domid, mapped(*refs), entries, granted.parse_account(account), known)
    return Books({name: one})


class TestLedger:
    before = books(IDLE, FREE_503, 0, 1, 8)

    def differences(self, after: Books, **seen: str) -> list[tuple[int | None, str, str]]:
        remembered = {1: {int(ref[1:]): word for ref, word in seen.items()}}
        found = ledger.compare(self.before, after, remembered)
        return [(each.ref, each.after, each.what) for each in found]

    def test_purposes(self) -> None:
        assert ledger.purposes(xenstore.XenstoreTree(BASE, MappingProxyType(KEYS))) == {
            0: "console",
            1: "xenstore",
            8: "console 1",
            9: "ring page 0 of xvda",
            40: "ring page 3 of xvdb, queue 1",
        }

    def test_nothing_changed(self) -> None:
        assert self.differences(books(IDLE, FREE_503, 0, 1, 8)) == []

    def test_granted_and_mapped(self) -> None:
        assert self.differences(books(ATTACHED, FREE_501, 0, 1, 8, 9)) == [
            (9, "granted, mapped", "ring page 0 of xvda"),
            (10, "granted, mapped", "other: data of a request, or a persistent grant"),
        ]

    def test_what_it_was_is_remembered(self) -> None:
        after = books(ATTACHED, FREE_501, 0, 1, 8, 9)
        assert self.differences(after, r10="ring page 1 of xvda")[1][2] == "was ring page 1 of xvda"

    def test_claimed(self) -> None:
        assert self.differences(books(IDLE, FREE_501, 0, 1, 8)) == [
            (9, "claimed, grants nothing", "other"),
            (10, "claimed, grants nothing", "other"),
        ]

    def test_not_granted_but_mapped(self) -> None:
        found = self.differences(books(IDLE, FREE_503, 0, 1, 8, 77))
        assert found == [(77, "not granted any more, but mapped", "other")]

    def test_waits_to_be_freed(self) -> None:
        waits = FREE_501.replace("deferred", "deferred 9 10")
        assert [after for _, after, _ in self.differences(books(ATTACHED, waits, 0, 1, 8))] == [
            "mapped, waits to be freed"
        ] * 2

    def test_given_up_for_good(self) -> None:
        found = self.differences(books(IDLE, FREE_503.replace("leaked 0", "leaked 2"), 0, 1, 8))
        assert found == [(None, "2", "references given up for good")]

    def test_a_console_that_lost_its_page(self) -> None:
        gone = "\n".join(line for line in IDLE.splitlines() if not line.startswith("entry 8"))
        found = self.differences(books(gone, FREE_503.replace("taken 8-8", "taken"), 0, 1))
        assert found == [(8, "free", "console 1")]

    def test_restored_under_other_references(self) -> None:
        """What has a purpose may have another reference; the domain, another number."""
        moved = dict(KEYS)
        moved[f"{BASE}/console/1/ring-ref"] = "11"
        text = IDLE.replace("entry 8", "entry 11")
        entries = granted.parse_table(text, 2)
        account = granted.parse_account(FREE_503.replace("8-8", "11-11"))
        purposes = {0: "console", 1: "xenstore", 11: "console 1"}
        after = DomainBooks("u1", 2, mapped(0, 1, 11), entries, account, purposes)
        assert ledger.compare(self.before, Books({"u1": after})) == ()

    def test_a_domain_that_has_ended_but_is_mapped(self) -> None:
        name = "domain 1, which has ended"
        after = Books({name: DomainBooks(name, 1, mapped(9))})
        (found,) = ledger.compare(self.before, after, {1: {9: "ring page 0 of xvda"}})
        assert (found.domain, found.ref, found.mappers) == (name, 9, (0,))
        assert found.what == "was ring page 0 of xvda"

    def test_table(self) -> None:
        found = ledger.compare(self.before, books(ATTACHED, FREE_501, 0, 1, 8, 9))
        head, first, _ = ledger.differences_table(found)
        assert head.startswith("domain  ref  frame    granted to  mapped by  before  after")
        assert first.split()[:5] == ["u1", "9", "0x3b973", "d0", "d0"]


class TestMemory:
    def test_dom0(self) -> None:
        seen = memory.parse((TRANSCRIPTS / "memory-dom0.txt").read_text(), "dom0").numbers
        assert seen["objects of kmalloc-32"] == 4692
        assert seen["kernel thread xenwatch"] == 1
        assert seen["interrupt xenbus"] == 1
        assert seen["vmalloc areas"] == 166
        assert seen["pages of the kernel's own"] == 2091
        assert seen["pages that grants are mapped at"] == 3
        assert not any(name.startswith("kernel thread kworker") for name in seen)
        assert "objects of dentry" not in seen

    def test_ports(self) -> None:
        seen = memory.parse_ports((TRANSCRIPTS / "ports.txt").read_text(), {0: "Domain-0", 1: "u1"})
        assert seen.numbers == {"event channels of Domain-0": 5, "event channels of u1": 8}

    def test_half_a_sample(self) -> None:
        with pytest.raises(RigError, match="dom0"):
            memory.parse("slabinfo\n@@\n", "dom0")


def cycles(*values: int) -> list[tuple[Memory]]:
    return [(Memory("dom0", {"x": value}),) for value in values]


class TestGrowth:
    """Values that were read on the real stack, after cycles of attaching and detaching a disk."""

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param((4706, 4706, 4706, 4706, 4706, 4706), id="nothing"),
            pytest.param((24, 24, 20, 24, 24, 24, 24, 24), id="a dip"),
            pytest.param((14, 14, 14, 16, 14, 14, 14, 14), id="a peak"),
            pytest.param((1675, 1537, 1675, 1537, 1675, 1537, 1675), id="to and fro"),
            pytest.param((2125, 2135, 2135, 2124, 2135, 2125, 2125, 2144, 2125), id="noise"),
            pytest.param((1993, 1993, 1993, 1993, 2025, 2025, 2041, 2041), id="leaps"),
            pytest.param((2028, 2029, 2059, 2059, 2061, 2071), id="a cache that fills"),
            pytest.param((4708, 4706, 4706, 4706, 4706, 4695), id="less"),
        ],
    )
    def test_noise(self, values: tuple[int, ...]) -> None:
        assert memory.growth(cycles(*values)) == ()

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param((549, 550, 551, 552, 553, 554, 555, 556), id="pages"),
            pytest.param((549, 550, 551, 553, 553, 554, 555, 556), id="pages, with noise"),
        ],
    )
    def test_one_page_a_cycle(self, values: tuple[int, ...]) -> None:
        """Of tests/mutants/grants-page-leaked.patch."""
        (found,) = memory.growth(cycles(*values))
        assert found.slope == 1

    def test_leaps_above_it_take_more_cycles(self) -> None:
        """Three in the first five hide what each cycle does; they are no reason to stop looking."""
        values = (2009, 2026, 2043, 2092, 2093, 2094)
        assert memory.growth(cycles(*values)) == ()
        assert len(memory.rising(cycles(*values))) == 1
        (found,) = memory.growth(cycles(*values, 2095, 2096, 2097))
        assert found.slope == 1

    def test_too_few(self) -> None:
        with pytest.raises(ValueError, match="5 at least"):
            memory.growth(cycles(1, 2, 3, 4))
