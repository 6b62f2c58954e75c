"""What tests of migration check: the ring, and what the domU's block layer knows of the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigLun
from emu.rig.verifying import VerifyingIo
from emu.xen.ring import requests_in

WITH_INDIRECT = {"max_segments": "32", "max_hw_sectors_kb": "128"}
WITHOUT = {"max_segments": "11", "max_hw_sectors_kb": "44"}
"""What the block layer may ask of a disk in one request: 32 segments at most of those that an
indirect request holds, or the 11 of a plain one (struct blkif_request)."""
QUEUES_WITHIN = 10.0
"""Seconds in which the front end has given the disk as many hardware queues as it has rings: a
worker does that, after the disk is connected."""


def check_ring(domu: RigDomu, pages: int, queues: int = 1) -> None:
    """Both ends have a ring of `pages` pages in each of `queues` queues, and agree on it."""
    ring = domu.ring()
    assert ring.connected, f"front end {ring.front_state}, back end {ring.back_state}"
    assert len(ring.queues) == queues, f"{len(ring.queues)} queues were negotiated, not {queues}"
    assert ring.pages == pages, f"a ring of {ring.pages} pages was negotiated, not of {pages}"
    assert list(ring.disagreements()) == [], "an end shows another ring than the keys"
    held = {end: [view.size for view in views] for end, views in ring.views.ends.items()}
    fit = [requests_in(pages)] * queues
    assert held == {"front": fit, "back": fit}, f"requests that the rings hold: {held}"
    check_hardware_queues(domu, queues)


def check_hardware_queues(domu: RigDomu, queues: int) -> None:
    """The domU's block layer uses every ring, or will in a moment."""
    until = Deadline("hardware queues", QUEUES_WITHIN)
    now = poll(domu.hardware_queues, until, until=lambda now: now == queues, pause=0.1)
    assert now == queues, f"the disk has {now} hardware queues for {queues} rings"


def check_filled(lun: RigLun, domu: RigDomu, requests: int) -> None:
    """With more than `requests` asked for at a time, so many are on the ring if it holds them."""
    fit = min(requests, domu.ring().requests)
    with lun.held():
        lun.await_outstanding(fit)
        on_ring = domu.outstanding()
    assert on_ring >= fit, f"{on_ring} requests are on a ring that holds {fit} of them"


LEAST_MEANWHILE = 10
"""Answers, of 15 requests a second, while a domU migrates live, which takes seconds."""


@contextlib.contextmanager
def check_goes_on(io: VerifyingIo) -> Iterator[None]:
    """The domU gets answers while the body migrates it live."""
    before = io.answered()
    yield
    meanwhile = io.answered() - before
    assert meanwhile >= LEAST_MEANWHILE, f"the domU got {meanwhile} answers while it migrated live"


def check_repeated(io: VerifyingIo, on_ring: int) -> None:
    """Only what was on the old ring was asked for again, and once."""
    assert io.ledger, "the I/O was not judged"
    repeated = io.ledger.repeated
    most = max((each.times for each in repeated), default=1)
    assert most <= 2, f"a write came to the LUN {most} times"
    assert len(repeated) <= on_ring, (
        f"{len(repeated)} writes came twice, {on_ring} were on the ring"
    )


def check_limits(domu: RigDomu, known: dict[str, str]) -> None:
    """The block layer's limits are those of the back end that the disk has now."""
    now = domu.queue_limits(*known)
    assert now == known, f"the disk's limits are {now}, those of its back end {known}"


def check_kept(domu: RigDomu, persistent: bool) -> None:
    """dom0 keeps pages mapped between requests, or none but the ring's."""
    assert domu.ring().persistent == persistent, f"persistent grants are not {persistent}"
    assert domu.fill() == domu.sum(), "what was read is not what was written"
    kept = sum(view.persistent or 0 for view in domu.queues().back or ())
    assert bool(kept) == persistent, f"the back end keeps {kept} grants mapped"
