"""The series: how large a ring is, told in both families of keys, between all kinds of ends."""

from __future__ import annotations

import itertools

import pytest
from ends import CLOSING, CONNECTED, DISK, LATER, Ends

from emu.xen.config import virtual_device

KINDS = ("stock", "patched")
FAMILY = ("ring-page-order", "num-ring-pages")


def pairings() -> list[object]:
    """All kinds of ends; the sizes between are in test_negotiation.py."""
    cases: list[object] = []
    for front, back, pages, later in itertools.product(KINDS, KINDS, (1, 16), (False, True)):
        marks = [LATER] if later else []
        if pages == 1 or (later and (front, back) != ("patched", "patched")):
            marks.append(pytest.mark.long)
        name = f"{front}-{back}-{pages}" + (", 6.12" if later else "")
        cases.append(pytest.param(front, back, pages, id=name, marks=marks))
    return cases


@pytest.mark.parametrize(("front", "back", "pages"), pairings())
def test_pairing(ends: Ends, front: str, back: str, pages: int) -> None:
    order = pages.bit_length() - 1
    ends.load("back", back)
    ends.load("front", front, max_ring_page_order=order)
    ends.attach()
    ring = ends.stack.domain.wait_connected(DISK)
    assert ring.pages == pages
    assert ends.fill_disk() == ends.sum_of_disk()
    offered = ends.stack.domain.back_tree()
    assert offered.get("max-ring-page-order") == "4"
    assert offered.get("max-ring-pages") == ("16" if back == "patched" else None)
    chosen = ends.stack.domain.front_tree()
    written = {key: chosen.get(key) for key in FAMILY}
    expected = {
        "ring-page-order": str(order) if pages > 1 else None,
        "num-ring-pages": str(pages) if pages > 1 and front == "patched" else None,
    }
    assert written == expected
    assert (chosen.get("ring-ref") is not None) == (pages == 1)
    ends.stack.domain.detach(DISK)
    assert ends.errors() == []


def offer(ends: Ends, **keys: int | None) -> None:
    """Make the back end's directory offer what `keys` say: a value, or no such key."""
    root = ends.stack.domain.back_path()
    for key, value in keys.items():
        path = f"{root}/{key.replace('_', '-')}"
        verb = ["xenstore-rm", path] if value is None else ["xenstore-write", path, str(value)]
        ends.stack.host.dom0.run(verb, timeout=20)


@pytest.mark.parametrize(
    ("order", "pages", "taken"),
    [
        pytest.param(None, 8, 8, id="pages alone"),
        pytest.param(3, None, 8, id="order alone"),
        pytest.param(1, 8, 8, id="pages larger"),
        pytest.param(2, 2, 4, id="order larger"),
        pytest.param(1, 12, 2, id="pages no power of two"),
        pytest.param(4294967295, 4, 4, id="absurd order"),
        pytest.param(None, 0, 1, id="no pages"),
    ],
)
def test_front_takes_the_larger_legal_offer(
    ends: Ends, order: int | None, pages: int | None, taken: int
) -> None:
    ends.load("back")
    ends.attach()
    offer(ends, max_ring_page_order=order, max_ring_pages=pages)
    ends.load("front", max_ring_page_order=4)
    ring = ends.stack.domain.wait_connected(DISK)
    assert ring.pages == taken, (
        f"the front end took {ring.pages} pages of an offer of order {order}, pages {pages}"
    )


def rebind_back(ends: Ends) -> None:
    """Let the back end go and come back: it reads the front end's keys anew."""
    name = f"vbd-{ends.stack.domain.domid}-{virtual_device(DISK)}"
    script = (
        "cd /sys/bus/xen-backend/drivers/vbd && echo $1 > unbind && "
        'physical=$(xenstore-read "$2/physical-device") && echo $1 > bind && '
        'xenstore-write "$2/physical-device" "$physical"'
    )
    root = ends.stack.domain.back_path()
    ends.channel("back").run(["sh", "-c", script, "sh", name, root], timeout=30)


@pytest.mark.parametrize("gone", FAMILY)
def test_back_takes_either_key(ends: Ends, gone: str) -> None:
    ends.load("back")
    ends.connect(order=2)
    before = ends.fill_disk()
    root = ends.stack.domain.front_path()
    ends.channel("back").run(["xenstore-rm", f"{root}/{gone}"], timeout=20)
    ends.listen()
    rebind_back(ends)
    state = ends.wait_back(CONNECTED, CLOSING, "Closed")
    assert state == CONNECTED, f"without {gone} the back end takes no ring: {ends.errors()}"
    assert ends.said("back", "connected: ring 4 pages, 128 requests")
    assert ends.sum_of_disk() == before


@pytest.mark.parametrize(
    ("order", "pages", "words"),
    [
        pytest.param(2, 8, "ring-page-order 2 and num-ring-pages 8 disagree", id="disagreeing"),
        pytest.param(33, 2, "ring-page-order 33 and num-ring-pages 2 disagree", id="wrapping"),
        pytest.param(5, None, "requested ring page order 5 exceeds max 4", id="large order"),
        pytest.param(5, 32, "requested ring page order 5 exceeds max 4", id="both large"),
        pytest.param(None, 32, "requested 32 ring pages: not a power of two up to 16", id="large"),
        pytest.param(None, 3, "requested 3 ring pages: not a power of two up to 16", id="odd"),
        pytest.param(None, 0, "requested 0 ring pages: not a power of two up to 16", id="none"),
    ],
)
def test_back_refuses_with_the_values(
    ends: Ends, order: int | None, pages: int | None, words: str
) -> None:
    ends.load("back")
    ends.attach()
    keys = dict(zip(FAMILY, (order, pages), strict=True))
    ends.publish(
        {
            **{key: value for key, value in keys.items() if value is not None},
            **{f"ring-ref{page}": 8 + page for page in range(32)},
            "event-channel": 1,
        }
    )
    refusal = ends.refusal()
    assert words in refusal, f"the back end did not refuse these keys for what they are: {refusal}"
    assert len(ends.errors()) == 1, ends.errors()
