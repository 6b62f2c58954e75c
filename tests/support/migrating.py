"""What tests of migration look at: the ring, and what the domU takes the disk to be."""

from __future__ import annotations

from emu.rig import RigDomu, RigLun
from emu.rig.verifying import VerifyingIo
from emu.xen.ring import requests_in

DISK = "xvda"
WITH_INDIRECT = {"max_segments": "32", "max_hw_sectors_kb": "128"}
WITHOUT = {"max_segments": "11", "max_hw_sectors_kb": "44"}
"""What the block layer may ask of a disk in one request: 32 segments at most of those that an
indirect request holds, or the 11 of a plain one (struct blkif_request)."""

# A number of queues is changed by a worker of the front end's, after the disk is connected.
_QUEUES = """
n=0
until [ $(ls /sys/block/$1/mq | wc -l) = $2 ] || [ $n = 100 ]; do n=$((n + 1)); usleep 50000; done
ls /sys/block/$1/mq | wc -l
"""


def check_ring(domu: RigDomu, pages: int, queues: int = 1) -> None:
    """Both ends have a ring of `pages` pages in each of `queues` queues, and agree on it."""
    ring = domu.ring()
    assert ring.connected, f"the ends stand at {ring.front_state} and {ring.back_state}"
    assert len(ring.queues) == queues, f"{len(ring.queues)} queues were negotiated, not {queues}"
    assert ring.pages == pages, f"a ring of {ring.pages} pages was negotiated, not of {pages}"
    assert list(ring.disagreements()) == [], "an end's ring is not what the keys say"
    held = {end: [view.size for view in views] for end, views in ring.views.ends.items()}
    fit = [requests_in(pages)] * queues
    assert held == {"front": fit, "back": fit}, f"requests that the rings hold: {held}"
    words = ["sh", "-c", _QUEUES, "sh", DISK, str(queues)]
    used = int(domu.channel.run(words, timeout=60).text)
    assert used == queues, f"the domU's block layer uses {used} queues of {queues}"


def check_filled(lun: RigLun, domu: RigDomu, requests: int) -> None:
    """With more than `requests` asked for at a time, so many are on the ring if it holds them."""
    fit = min(requests, domu.ring().requests)
    with lun.held():
        lun.await_outstanding(fit)
        on_ring = sum(view.outstanding or 0 for view in domu.queues().front or ())
    assert on_ring >= fit, f"{on_ring} requests are on a ring that holds {fit} of them"


def check_repeated(io: VerifyingIo, on_ring: int) -> None:
    """Only what was on the old ring was asked for again, and once."""
    assert io.ledger
    repeated = io.ledger.repeated
    most = max((each.times for each in repeated), default=1)
    assert most <= 2, f"a write came to the LUN {most} times"
    assert len(repeated) <= on_ring, (
        f"{len(repeated)} writes came twice, {on_ring} were on the ring"
    )


def check_limits(domu: RigDomu, known: dict[str, str]) -> None:
    """The block layer's limits are those of the back end that the disk has now."""
    lines = domu.run(f"cd /sys/block/{DISK}/queue && cat {' '.join(known)}").splitlines()
    now = dict(zip(known, lines, strict=True))
    assert now == known, f"the disk's limits are {now}, those of its back end {known}"


def check_kept(domu: RigDomu, persistent: bool) -> None:
    """dom0 keeps pages mapped between requests, or none but the ring's."""
    assert domu.ring().persistent == persistent, f"persistent grants are not {persistent}"
    assert domu.fill() == domu.sum(), "what was read is not what was written"
    kept = sum(view.persistent or 0 for view in domu.queues().back or ())
    assert bool(kept) == persistent, f"the back end keeps {kept} grants mapped"
