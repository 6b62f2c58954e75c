"""The series: how large a ring is, in both families of keys, between all kinds of ends."""

from __future__ import annotations

import itertools

import pytest
from driver_checks import check_data, check_holds, check_pages, check_quiet, only
from marks import LATER

from emu.rig import RigHost, RigLun
from emu.rig.keys import FrontEndKeys, offer_values

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
def test_pairing(host: RigHost, lun: RigLun, front: str, back: str, pages: int) -> None:
    domu = host.create(disk=lun, front=front, back=back, ring_pages=pages)
    check_pages(domu.ring(lun), pages)
    check_data(domu, lun)
    offered = domu.domain.back_tree()
    offers = {key: offered.get(key) for key in ("max-ring-page-order", "max-ring-pages")}
    assert offers == {
        "max-ring-page-order": "4",
        "max-ring-pages": "16" if back == "patched" else None,
    }, f"the {back} back end offers {offers}"
    chosen = domu.domain.front_tree()
    written = {key: chosen.get(key) for key in FAMILY}
    expected = {
        "ring-page-order": str(pages.bit_length() - 1) if pages > 1 else None,
        "num-ring-pages": str(pages) if pages > 1 and front == "patched" else None,
    }
    assert written == expected, (
        f"the {front} front end published {written} for {pages} pages, not {expected}"
    )
    assert (chosen.get("ring-ref") is not None) == (pages == 1), (
        f"the front end published its references as {sorted(chosen.children())}: a ring of one "
        "page, and no other, is in ring-ref"
    )
    domu.detach(lun)
    check_quiet(domu)


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
    host: RigHost, lun: RigLun, order: int | None, pages: int | None, taken: int
) -> None:
    domu = host.create(front=None)
    domu.offer(lun)
    offer_values(domu, lun, order=order, pages=pages)
    domu.load_front(max_ring_pages=16)
    ring = domu.wait_connected(lun)
    assert ring.pages == taken, (
        f"the front end took {ring.pages} pages of an offer of order {order}, pages {pages}"
    )


@pytest.mark.parametrize("gone", FAMILY)
def test_back_takes_either_key(host: RigHost, lun: RigLun, gone: str) -> None:
    """A back end that is bound again reads the front end's keys anew."""
    domu = host.create(disk=lun, ring_pages=4)
    before = domu.fill()
    FrontEndKeys(domu).remove(gone)
    host.log.mark()
    domu.unbind_back()
    domu.bind_back()
    state = domu.wait_back("Connected", "Closing", "Closed")
    assert state == "Connected", f"without {gone} the back end takes no ring: {domu.errors()}"
    connected = host.log.lines("connected: ring")
    assert any("connected: ring 4 pages, 128 requests" in line for line in connected), (
        f"the back end did not log the ring of 4 pages that it took: {connected}"
    )
    check_holds(domu, before)


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
    host: RigHost, lun: RigLun, order: int | None, pages: int | None, words: str
) -> None:
    domu = host.create(front=None)
    domu.offer(lun)
    front = FrontEndKeys(domu)
    keys = dict(zip(FAMILY, (order, pages), strict=True))
    front.publish(
        {
            **{key: value for key, value in keys.items() if value is not None},
            **{f"ring-ref{page}": 8 + page for page in range(32)},
            "event-channel": 1,
        }
    )
    refusal = front.refusal()
    assert words in refusal, f"the back end did not refuse these keys for what they are: {refusal}"
    only(domu.errors(), "tell of one connection that was refused")
