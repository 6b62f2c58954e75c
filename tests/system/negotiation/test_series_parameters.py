"""The series: the limit of ring pages as a number, clamped with a word, changed while it runs."""

from __future__ import annotations

from typing import Any

import pytest
from ends import CLOSING, DISK, Ends

from emu.images.modules import End

PARAMETERS = "/sys/module/xen_blkback/parameters"
OUT_OF_RANGE = [
    pytest.param({"max_ring_pages": 100}, 16, "max_ring_pages: 100 given, 16 used, limit 16"),
    pytest.param({"max_ring_pages": 12}, 8, "max_ring_pages: 12 given, 8 used, limit 16"),
    pytest.param({"max_ring_pages": 0}, 1, "max_ring_pages: 0 given, 1 used, limit 16"),
    pytest.param({"max_ring_page_order": 9}, 16, "max_ring_page_order: 9 given, 4 used, limit 4"),
]


@pytest.mark.parametrize("end", ["front", "back"])
@pytest.mark.parametrize(("given", "pages", "words"), OUT_OF_RANGE)
def test_clamped_with_one_message(
    ends: Ends, end: End, given: dict[str, Any], pages: int, words: str
) -> None:
    now = ends.load(end, **given)
    assert now.parameters["max_ring_pages"] == str(pages), f"the limit is not clamped: {given}"
    assert now.parameters["max_ring_page_order"] == str(pages.bit_length() - 1)
    assert len(ends.said(end, "given")) == 1
    assert words in ends.said(end, "given")[0]


@pytest.mark.parametrize("end", ["front", "back"])
def test_contradiction_is_told(ends: Ends, end: End) -> None:
    now = ends.load(end, max_ring_page_order=3, max_ring_pages=4)
    assert now.parameters["max_ring_pages"] == "4"
    assert len(ends.said(end, "contradict")) == 1
    assert "of 8 and 4 pages" in ends.said(end, "contradict")[0]


@pytest.mark.parametrize("end", ["front", "back"])
def test_agreement_is_not(ends: Ends, end: End) -> None:
    assert (
        ends.load(end, max_ring_pages=8, max_ring_page_order=3).parameters["max_ring_pages"] == "8"
    )
    assert not ends.said(end, "contradict")
    assert not ends.said(end, "given")


def test_both_ends_by_number(ends: Ends) -> None:
    ends.load("back", max_ring_pages=8)
    ends.load("front", max_ring_pages=16)
    ends.stack.domain.attach(ends.stack.lun, DISK)
    assert ends.stack.domain.wait_connected(DISK).pages == 8


def write(ends: Ends, name: str, value: int) -> None:
    ends.channel("back").run(f"echo {value} > {PARAMETERS}/{name}", timeout=20)


def test_next_connection_has_the_new_limit(ends: Ends) -> None:
    ends.load("back")
    assert ends.connect(order=4).pages == 16
    write(ends, "max_ring_pages", 2)
    now = ends.channel("back").run(["cat", f"{PARAMETERS}/max_ring_page_order"], timeout=20)
    assert now.text.strip() == "1"
    assert ends.fill_disk() == ends.sum_of_disk()
    assert ends.stack.domain.ring(DISK).pages == 16
    ends.stack.domain.detach(DISK)
    ends.attach()
    ring = ends.stack.domain.wait_connected(DISK)
    assert (ring.pages, ring.offer.order, ring.offer.pages) == (2, 1, 2)
    write(ends, "max_ring_page_order", 3)
    ends.unbind_front()
    ends.load("front", max_ring_pages=16)
    ring = ends.stack.domain.wait_connected(DISK)
    assert (ring.pages, ring.offer.order, ring.offer.pages) == (8, 3, 8), (
        f"a connection after the limit was changed is offered the old one: {ring.offer}"
    )
    assert not ends.said("back", "contradict")


@pytest.mark.parametrize(
    ("lowered", "pages"), [pytest.param(2, 8, id="lowered"), pytest.param(16, 8, id="raised")]
)
def test_what_was_offered_counts(ends: Ends, lowered: int, pages: int) -> None:
    ends.load("back", max_ring_pages=8)
    ends.attach()
    write(ends, "max_ring_pages", lowered)
    ends.load("front", max_ring_pages=16)
    assert ends.stack.domain.wait_connected(DISK).pages == pages


def test_more_than_was_offered_is_refused(ends: Ends) -> None:
    ends.load("back", max_ring_pages=2)
    ends.attach()
    write(ends, "max_ring_pages", 16)
    references = {f"ring-ref{page}": 8 + page for page in range(4)}
    ends.publish({"num-ring-pages": 4, "event-channel": 1, **references})
    refusal = ends.refusal()
    assert "requested 4 ring pages: not a power of two up to 2" in refusal, (
        f"the back end takes more pages than it has offered: {refusal}"
    )
    ends.wait_back(CLOSING)
