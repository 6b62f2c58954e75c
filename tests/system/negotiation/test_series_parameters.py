"""The series: the limit of ring pages as a number, clamped and logged, changed at run time."""

from __future__ import annotations

from typing import Any

import pytest
from driver_checks import check_data, check_pages, only

from emu.errors import NotHeld
from emu.images.modules import End
from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.host import BACK_PARAMETERS
from emu.rig.keys import FrontEndKeys

OUT_OF_RANGE = [
    pytest.param({"max_ring_pages": 100}, 16, "max_ring_pages: 100 given, 16 used, limit 16"),
    pytest.param({"max_ring_pages": 12}, 8, "max_ring_pages: 12 given, 8 used, limit 16"),
    pytest.param({"max_ring_pages": 0}, 1, "max_ring_pages: 0 given, 1 used, limit 16"),
    pytest.param({"max_ring_page_order": 9}, 16, "max_ring_page_order: 9 given, 4 used, limit 4"),
]


@pytest.mark.parametrize("end", ["front", "back"])
@pytest.mark.parametrize(("given", "pages", "words"), OUT_OF_RANGE)
def test_limit_is_clamped_with_one_message(
    domu: RigDomu, end: End, given: dict[str, Any], pages: int, words: str
) -> None:
    now = domu.load(end, **given)
    assert now.parameters["max_ring_pages"] == str(pages), f"the limit is not clamped: {given}"
    order = now.parameters["max_ring_page_order"]
    assert order == str(pages.bit_length() - 1), (
        f"max_ring_page_order reads {order} where max_ring_pages reads {pages}"
    )
    line = only(domu.log_of(end).lines("given"), "tell of a limit that is clamped")
    assert words in line, f"the clamped limit {given} is logged as {line!r}"


@pytest.mark.parametrize("end", ["front", "back"])
def test_contradiction_is_logged(domu: RigDomu, end: End) -> None:
    now = domu.load(end, max_ring_page_order=3, max_ring_pages=4)
    pages = now.parameters["max_ring_pages"]
    assert pages == "4", f"of an order of 3 and of 4 pages {pages} pages were used"
    line = only(domu.log_of(end).lines("contradict"), "tell of limits that contradict each other")
    assert "of 8 and 4 pages" in line, f"the contradiction is logged as {line!r}"


@pytest.mark.parametrize("end", ["front", "back"])
def test_agreement_is_not_logged(domu: RigDomu, end: End) -> None:
    now = domu.load(end, max_ring_pages=8, max_ring_page_order=3)
    pages = now.parameters["max_ring_pages"]
    assert pages == "8", f"of an order of 3 and 8 pages, which agree, {pages} pages were used"
    log = domu.log_of(end)
    logged = [*log.lines("contradict"), *log.lines("given")]
    assert not logged, f"limits that agree are logged as if they did not: {logged}"


def test_both_ends_take_a_number(host: RigHost, lun: RigLun) -> None:
    domu = host.create(
        disk=lun, front_parameters={"max_ring_pages": 16}, back_parameters={"max_ring_pages": 8}
    )
    check_pages(domu.ring(lun), 8)


def test_next_connection_has_the_new_limit(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=16)
    check_pages(domu.ring(lun), 16)
    host.set_back(max_ring_pages=2)
    order = host.back_parameter("max_ring_page_order")
    assert order == "1", f"max_ring_page_order reads {order} after max_ring_pages was set to 2"
    check_data(domu, lun)
    check_pages(domu.ring(lun), 16, "although the limit changed when it had connected")
    domu.detach(lun)
    ring = domu.attach(lun)
    assert (ring.pages, ring.offer.order, ring.offer.pages) == (2, 1, 2), (
        f"a disk attached after the limit was set to 2 pages has {ring.pages}, offered {ring.offer}"
    )
    host.set_back(max_ring_page_order=3)
    domu.unbind_front(lun)
    domu.load_front(max_ring_pages=16)
    ring = domu.wait_connected(lun)
    assert (ring.pages, ring.offer.order, ring.offer.pages) == (8, 3, 8), (
        f"a connection after the limit was changed is offered the old one: {ring.offer}"
    )
    logged = host.log.lines("contradict")
    assert not logged, f"a limit set once at a time is logged as a contradiction: {logged}"


@pytest.mark.parametrize(
    ("changed", "pages"), [pytest.param(2, 8, id="lowered"), pytest.param(16, 8, id="raised")]
)
def test_offer_holds_when_the_limit_changes(
    host: RigHost, lun: RigLun, changed: int, pages: int
) -> None:
    domu = host.create(front=None, max_ring_pages=8)
    domu.offer(lun)
    host.set_back(max_ring_pages=changed)
    domu.load_front(max_ring_pages=16)
    check_pages(domu.wait_connected(lun), pages)


def test_more_than_the_offer_is_refused(host: RigHost, lun: RigLun) -> None:
    domu = host.create(front=None, max_ring_pages=2)
    domu.offer(lun)
    host.set_back(max_ring_pages=16)
    front = FrontEndKeys(domu)
    references = {f"ring-ref{page}": 8 + page for page in range(4)}
    front.publish({"num-ring-pages": 4, "event-channel": 1, **references})
    refusal = front.refusal()
    assert "requested 4 ring pages: not a power of two up to 2" in refusal, (
        f"the back end takes more pages than it has offered: {refusal}"
    )


PLACES = {"front": "/sys/module/xen_blkfront/parameters", "back": BACK_PARAMETERS}


@pytest.mark.parametrize("end", ["front", "back"])
def test_what_is_no_number_is_refused(domu: RigDomu, end: End) -> None:
    """In sysfs (the back end's can be written) and by insmod: EINVAL, and nothing changes."""
    names = ("max_ring_pages", "max_ring_page_order")
    domu.load(end, max_ring_pages=4)
    channel = domu.channel_of(end)
    wrong: dict[str, str] = {}
    for name in names if end == "back" else ():
        for text in ("many", "-1", "4 pages", "99999999999"):
            script = ["sh", "-c", 'echo "$1" > "$2"', "sh", text, f"{PLACES[end]}/{name}"]
            if channel.run(script, timeout=20, check=False).ok:
                wrong[f"{name} set to {text!r}"] = "is taken"
    now = [channel.run(["cat", f"{PLACES[end]}/{name}"], timeout=20).text.strip() for name in names]
    if now != ["4", "2"]:
        wrong["after numbers that are none"] = f"the limits read {now}, not those of 4 pages"
    if lines := domu.log_of(end).lines("given"):
        wrong["a number that is none"] = f"is logged as one that was used: {lines}"
    for name in names:
        try:
            domu.load(end, **{name: "many"})
            wrong[f"insmod with {name}=many"] = "succeeds"
        except NotHeld as refused:
            if "Invalid argument" not in str(refused):
                wrong[f"insmod with {name}=many"] = f"is refused as {refused}"
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())
