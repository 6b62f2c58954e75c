"""The views of emu.xen, on what xenstore-ls, xl and the kernel printed on the real stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.errors import InputError, RigError
from emu.images import xens
from emu.xen import grants, hypervisor, queues, ring, xenstore
from emu.xen.config import DomuConfig
from emu.xen.drivers import build_id_of_note
from emu.xen.host import parse_info, parse_list

TRANSCRIPTS = Path(__file__).parent / "transcripts"
FRONT = "/local/domain/1/device/vbd/51712"
BACK = "/local/domain/0/backend/vbd/1/51712"


def tree(name: str, side: str) -> xenstore.XenstoreTree:
    text = (TRANSCRIPTS / f"{name}-{side}.txt").read_text()
    return xenstore.parse(text, FRONT if side == "front" else BACK)


def dump(name: str) -> grants.GrantDump:
    return grants.parse((TRANSCRIPTS / f"{name}-grants.txt").read_text().splitlines())


def with_keys(base: xenstore.XenstoreTree, **keys: str | None) -> xenstore.XenstoreTree:
    """The tree with keys changed or, where None, absent; `_` for `-`."""
    values = dict(base.values)
    for name, value in keys.items():
        path = f"{base.root}/{name.replace('_', '-')}"
        if value is None:
            del values[path]
        else:
            values[path] = value
    return xenstore.XenstoreTree(base.root, values)


class TestRing:
    def test_sixteen_pages(self) -> None:
        seen = ring.negotiated(tree("ring16", "front"), tree("ring16", "back"))
        assert (seen.pages, seen.order, seen.requests) == (16, 4, 512)
        assert seen.refs == tuple(range(9, 25))
        assert seen.queues[0].event_channel == 9
        assert seen.offer == ring.Offer(order=4, pages=None)
        assert seen.offer.most_pages == 16
        assert seen.connected
        assert seen.persistent

    def test_one_page_has_the_old_key(self) -> None:
        front = tree("ring1", "front")
        assert front.get("ring-ref") is not None
        assert front.get("ring-page-order") is None
        seen = ring.negotiated(front, tree("ring1", "back"))
        assert (seen.pages, seen.order, seen.requests) == (1, 0, 32)

    def test_two_queues(self) -> None:
        seen = ring.negotiated(tree("queues2", "front"), tree("queues2", "back"))
        assert [queue.refs for queue in seen.queues] == [(9, 10), (11, 12)]
        assert [queue.event_channel for queue in seen.queues] == [16, 17]
        assert (seen.pages, seen.requests, seen.refs) == (2, 64, (9, 10, 11, 12))

    def test_pages_family(self) -> None:
        front = with_keys(tree("ring16", "front"), ring_page_order=None, num_ring_pages="4")
        back = with_keys(tree("ring16", "back"), max_ring_page_order=None, max_ring_pages="8")
        seen = ring.negotiated(front, back)
        assert seen.pages == 4
        assert seen.offer.most_pages == 8

    def test_one_end_not_connected(self) -> None:
        front = with_keys(tree("ring16", "front"), state="3")
        seen = ring.negotiated(front, tree("ring16", "back"))
        assert (seen.front_state, seen.back_state) == ("Initialised", "Connected")
        assert not seen.connected

    @pytest.mark.parametrize("order", ["-1", "11", str(2**31)])
    def test_absurd_order(self, order: str) -> None:
        front = with_keys(tree("ring16", "front"), ring_page_order=order)
        with pytest.raises(RigError, match="no ring has that order"):
            ring.negotiated(front, tree("ring16", "back"))

    @pytest.mark.parametrize("pages", ["0", "-1", "4096"])
    def test_absurd_pages(self, pages: str) -> None:
        front = with_keys(tree("ring16", "front"), ring_page_order=None, num_ring_pages=pages)
        with pytest.raises(RigError, match="no ring has that many pages"):
            ring.negotiated(front, tree("ring16", "back"))

    def test_text_for_a_number(self) -> None:
        front = with_keys(tree("ring16", "front"), ring_page_order="many")
        with pytest.raises(RigError, match="'many', not a number"):
            ring.negotiated(front, tree("ring16", "back"))

    @pytest.mark.parametrize("key", ["ring_ref15", "event_channel"])
    def test_missing_key_is_named(self, key: str) -> None:
        front = with_keys(tree("ring16", "front"), **{key: None})
        with pytest.raises(RigError, match=f"lacks {key.replace('_', '-')}"):
            ring.negotiated(front, tree("ring16", "back"))

    @pytest.mark.parametrize(
        ("pages", "requests"),
        [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512), (32, 1024), (64, 2048)],
    )
    def test_requests(self, pages: int, requests: int) -> None:
        assert ring.requests_in(pages) == requests


def shown(name: str) -> queues.Views:
    text = {end: (TRANSCRIPTS / f"{name}-{end}.txt").read_text() for end in ("front", "back")}
    return queues.Views(
        front=queues.parse(text["front"], queues.FrontQueue),
        back=queues.parse(text["back"], queues.BackQueue),
    )


class TestQueues:
    def test_front(self) -> None:
        (seen,) = shown("shown16").front or ()
        assert (seen.number, seen.pages, seen.size, seen.outstanding) == (0, 16, 512, 0)
        assert seen.req_prod == seen.rsp_prod == seen.rsp_cons == 36
        assert seen.persistent == seen.persistent_grants_free == seen.grants_free == 264
        assert (seen.grants, seen.grants_max) == (264, 6565)
        assert not seen.other

    def test_back(self) -> None:
        (seen,) = shown("shown16").back or ()
        assert (seen.pages, seen.size, seen.requests, seen.outstanding) == (16, 512, 512, 0)
        assert seen.req_prod == seen.req_cons == seen.rsp_prod == 36
        assert seen.persistent == seen.persistent_grants == 264
        assert (seen.persistent_grants_in_use, seen.free_pages) == (0, 0)
        assert not seen.other

    def test_two_queues(self) -> None:
        for end in shown("shown2x2").ends.values():
            assert [(queue.number, queue.pages, queue.size) for queue in end] == [
                (0, 2, 64),
                (1, 2, 64),
            ]
            assert [queue.persistent for queue in end] == [0, 264]

    def test_numbers_unknown_and_absent(self) -> None:
        text = (TRANSCRIPTS / "shown16-back.txt").read_text().replace("free_pages", "deferred")
        (seen,) = queues.parse(text, queues.BackQueue)
        assert seen.free_pages is None
        assert seen.other == {"deferred": 0}
        assert seen.numbers() == {
            line.split(":")[1]: int(line.split(": ")[1]) for line in text.splitlines()
        }

    def test_queues_in_their_order(self) -> None:
        text = "".join(f"queue-{number}:pages: {number}\n" for number in (0, 1, 10, 2))
        seen = queues.parse(text, queues.FrontQueue)
        assert [queue.pages for queue in seen] == [0, 1, 2, 10]

    @pytest.mark.parametrize("line", ["pages: 16", "queue-0:pages: many", "queue-0:pages:16", ""])
    def test_no_number(self, line: str) -> None:
        with pytest.raises(RigError, match="no number"):
            queues.parse(f"queue-0:pages: 16\n{line}\n", queues.FrontQueue)

    def test_stock_ends_show_nothing(self) -> None:
        nothing = queues.Views()
        assert nothing.ends == {}
        assert nothing.any_end == ()
        one = queues.Views(back=shown("shown16").back)
        assert list(one.ends) == ["back"]
        assert one.any_end == one.back

    def test_ring_is_the_drivers_where_they_show_it(self) -> None:
        front, back = tree("queues2", "front"), tree("queues2", "back")
        seen = ring.negotiated(front, back, shown("shown2x2"))
        assert (seen.pages, seen.requests, seen.source) == (2, 64, "drivers")
        assert list(seen.disagreements()) == []
        assert ring.negotiated(front, back).source == "xenstore"

    def test_ring_of_one_end_alone(self) -> None:
        one = queues.Views(back=shown("shown16").back)
        seen = ring.negotiated(tree("ring16", "front"), tree("ring16", "back"), one)
        assert (seen.pages, seen.requests, seen.source) == (16, 512, "drivers")

    def test_keys_of_an_earlier_ring(self) -> None:
        front = with_keys(tree("ring16", "front"), ring_page_order="3")
        seen = ring.negotiated(front, tree("ring16", "back"), shown("shown16"))
        assert (seen.pages, seen.key_pages, seen.requests) == (16, 8, 512)
        assert list(seen.disagreements()) == [
            "the front end's queue 0 has 16 pages, the keys 8",
            "the front end's queue 0 holds 512 requests, the pages of the keys 256",
            "the back end's queue 0 has 16 pages, the keys 8",
            "the back end's queue 0 holds 512 requests, the pages of the keys 256",
        ]

    def test_other_queues_than_the_keys(self) -> None:
        seen = ring.negotiated(tree("ring16", "front"), tree("ring16", "back"), shown("shown2x2"))
        assert "the front end has 2 queues, the keys 1" in list(seen.disagreements())


class TestGrants:
    def test_sixteen_pages_are_mapped_by_dom0(self) -> None:
        table = dump("ring16").of(1)
        assert table.refs >= set(range(9, 25))
        assert all(grant.mapper == 0 for grant in table.grants)
        assert (table.version, table.frames, table.max_frames) == (1, 1, 64)
        assert table.maptrack_frames == 0
        assert table.max_maptrack_frames == 1024

    def test_an_entry(self) -> None:
        first = dump("ring16").of(1).grants[0]
        assert first == grants.Grant(ref=0, mapper=0, mfn=0x3EE02, pin=2, gmfn=0x3EE02, flags=0x19)
        assert first.mappings == 2

    def test_dom0_has_none(self) -> None:
        table = dump("ring16").of(0)
        assert table.grants == ()
        assert table.maptrack_frames == 1

    def test_one_page(self) -> None:
        (ref,) = ring.negotiated(tree("ring1", "front"), tree("ring1", "back")).refs
        assert ref in dump("ring1").of(1).refs
        assert len(dump("ring16").of(1).grants) - len(dump("ring1").of(1).grants) == 15

    def test_the_last_complete_dump_counts(self) -> None:
        first = (TRANSCRIPTS / "ring1-grants.txt").read_text().splitlines()
        second = (TRANSCRIPTS / "ring16-grants.txt").read_text().splitlines()
        assert grants.parse([*first, *second]) == dump("ring16")
        assert grants.parse([*first, *second[:-1]]) == dump("ring1")

    def test_no_dump(self) -> None:
        with pytest.raises(RigError, match="no complete grant table dump"):
            grants.parse(["(XEN) something else"])

    def test_unknown_domain(self) -> None:
        with pytest.raises(RigError, match="no grant table of domain 7"):
            dump("ring16").of(7)


class TestXenstore:
    def test_tree(self) -> None:
        back = tree("ring16", "back")
        assert back.state() == "Connected"
        assert back.integer("sectors") == 524288
        assert back.get("feature-persistent") == "1"
        assert back.get("absent") is None
        assert tree("queues2", "front").children()[:2] == ("backend", "backend-id")
        assert tree("queues2", "front").sub("queue-1").integer("ring-ref0") == 11

    def test_escapes(self) -> None:
        parsed = xenstore.parse('/a = "x\\"y\\\\z\\n\\t\\x01\\001"\n', "/")
        assert parsed.get("a") == 'x"y\\z\n\t\x01\x01'

    def test_no_key(self) -> None:
        with pytest.raises(RigError, match="no key: 'xenstore-ls: '"):
            xenstore.parse("xenstore-ls: \n", "/")

    def test_absent_state(self) -> None:
        assert xenstore.parse("", "/a").state() == "absent"
        assert not xenstore.parse("", "/a")


class TestHost:
    def test_list(self) -> None:
        domains = parse_list((TRANSCRIPTS / "xl-list.txt").read_text())
        assert [(d.name, d.domid, d.memory, d.vcpus) for d in domains] == [
            ("Domain-0", 0, 1024, 1),
            ("u1", 1, 256, 1),
        ]
        assert domains[1].state == "-b----"

    def test_info(self) -> None:
        info = parse_info((TRANSCRIPTS / "xl-info.txt").read_text())
        assert info["xen_version"] == "4.17.7"
        assert info["release"] == "6.1.0-56-amd64"
        assert info["xen_commandline"].startswith("console=com1 com1=115200,8n1 ")


@pytest.mark.parametrize(
    ("release", "version"), [("4.14", "4.14.6"), ("4.20", "4.20.5-pre")], ids=["4.14", "4.20"]
)
class TestOtherXens:
    """What Xen, xl and lsevtchn of the other suites print, with a disk of 16 ring pages."""

    def test_hypervisor(self, release: str, version: str) -> None:
        seen = hypervisor.parse((TRANSCRIPTS / f"hypervisor-{release}.txt").read_text())
        assert dict(seen.names) == {0: "Domain-0", 1: "u1"}
        table = seen.grants.of(1)
        assert table.refs >= set(range(9, 25))
        assert (table.version, table.max_frames, table.max_maptrack_frames) == (1, 64, 1024)
        assert seen.ports.numbers == {"event channels of Domain-0": 26, "event channels of u1": 9}

    def test_info(self, release: str, version: str) -> None:
        info = parse_info((TRANSCRIPTS / f"xl-info-{release}.txt").read_text())
        assert info["xen_version"] == version
        assert info["xen_commandline"].startswith("console=com1 com1=115200,8n1 ")


class TestDrivers:
    def test_build_id(self) -> None:
        note = (TRANSCRIPTS / "build-id.note").read_bytes()
        assert build_id_of_note(note) == "3383cf0b7ca57a816d3759680bf03e46f31701da"

    @pytest.mark.parametrize("cut", [0, 12, 35])
    def test_cut_note(self, cut: int) -> None:
        note = (TRANSCRIPTS / "build-id.note").read_bytes()
        with pytest.raises(RigError, match="build-id note"):
            build_id_of_note(note[:cut])


class TestDomain:
    def test_config(self) -> None:
        text = DomuConfig(name="u9", kind="pvh", memory=128).render(xens.find("4.17"))
        assert 'name = "u9"\ntype = "pvh"\n' in text
        assert "memory = 128\n" in text

    @pytest.mark.parametrize(("release", "channels"), [("4.14", 2), ("4.17", 2), ("4.20", 1)])
    def test_channels_for_one_more_console(self, release: str, channels: int) -> None:
        assert DomuConfig().render(xens.find(release)).count("name=emu,") == channels

    def test_bad_config(self) -> None:
        with pytest.raises(InputError, match="pv or pvh, not 'hvm'"):
            DomuConfig(kind="hvm")
        with pytest.raises(InputError, match="64 or more"):
            DomuConfig(memory=8)
