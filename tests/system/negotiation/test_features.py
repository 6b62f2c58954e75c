"""Every feature key: what a back end publishes, and what a front end makes of it, then and later.

The back end of back-ends/other-keys.patch is the series' own, but for the keys that it is told to
publish when it connects; the disk behind it is the same LUN each time.
"""

from __future__ import annotations

import re

import pytest
from back_ends import back_end
from partitioned import partition

from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost, RigLun

SMALL = pytest.mark.stack(kernel="lab", domu_memory=64)
"""The less memory, the sooner it is saved and restored."""
SIZE_WITHIN = 5.0
"""Seconds until a restored disk has its back end's size."""
LIMITS = {
    "write_cache": "queue/write_cache",
    "fua": "queue/fua",
    "discard_max": "queue/discard_max_hw_bytes",
    "discard_granularity": "queue/discard_granularity",
    # That of a whole disk is another number in Linux 6.1 (disk_discard_alignment_show()).
    "discard_alignment": "xvda1/discard_alignment",
    "max_segments": "queue/max_segments",
    "max_hw_sectors_kb": "queue/max_hw_sectors_kb",
    "logical_block_size": "queue/logical_block_size",
    "physical_block_size": "queue/physical_block_size",
    "size": "size",
    "removable": "removable",
    "ro": "ro",
}
"""What the domU's block layer knows of a disk, by files below /sys/block/xvda."""
LUN_MIB = 256
ANY_SIZE = str((2**32 - 1) * 512)
"""Bytes of the largest discard that the block layer knows: blkif has no limit."""
OWN = {
    "write_cache": "write back",
    "fua": "0",
    "discard_max": ANY_SIZE,
    "discard_granularity": "65536",
    "discard_alignment": "0",
    "max_segments": "32",
    "max_hw_sectors_kb": "128",
    "logical_block_size": "512",
    "physical_block_size": "512",
    "size": str(LUN_MIB << 11),
    "removable": "0",
    "ro": "0",
}
"""What comes of the back end's own keys for the LUN."""
NO_CACHE = {"write_cache": "write through"}
BARRIER = {"write_cache": "write back", "fua": "1"}
NO_DISCARD = {"discard_max": "0"}
PLAIN = {"max_segments": "11", "max_hw_sectors_kb": "44"}
TWELVE = {"max_segments": "12", "max_hw_sectors_kb": "48"}
NOTHING = {**NO_CACHE, **NO_DISCARD, **PLAIN}
FEATURES: dict[str, dict[str, str]] = {
    "": {},
    "feature-flush-cache=0 feature-barrier=0 feature-discard=0 "
    "feature-max-indirect-segments=0": NOTHING,
    "feature-flush-cache= feature-barrier= feature-discard= "
    "feature-max-indirect-segments=": NOTHING,
    "feature-flush-cache=0 feature-barrier=1 feature-max-indirect-segments=8 "
    "discard-granularity=4096 discard-alignment=2048": {
        **BARRIER,
        **PLAIN,
        "discard_granularity": "4096",
        "discard_alignment": "2048",
    },
    "feature-flush-cache= feature-barrier=1 feature-max-indirect-segments=11 "
    "discard-granularity= physical-sector-size=4096": {
        **BARRIER,
        **PLAIN,
        "discard_granularity": "4096",
        "physical_block_size": "4096",
    },
    "feature-barrier=0 feature-max-indirect-segments=12 physical-sector-size=": TWELVE,
    "info=1 feature-max-indirect-segments=32": {},
    "info=2": {"removable": "1"},
    "info=4": {"ro": "1", **NO_CACHE},
}
"""Keys as the back end of other-keys.patch takes them ("name=" takes one away), and what a disk
has then that it has not by `OWN`. Bits of `info` (io/blkif.h): CD-ROM, removable, read-only."""


def limits(domu: RigDomu) -> dict[str, str]:
    """The first disk's `LIMITS`; "none" for what has no file."""
    script = "cd /sys/block/xvda; for file; do cat $file 2> /dev/null || echo none; done"
    words = ["sh", "-c", script, "sh", *LIMITS.values()]
    return dict(zip(LIMITS, domu.channel.run(words, timeout=20).text.splitlines(), strict=True))


def differing(now: dict[str, str], want: dict[str, str]) -> str:
    """Words for what is not as it should be, or "". Without discards their shape means nothing."""
    shape = ("discard_granularity", "discard_alignment")
    return ", ".join(
        f"{name} is {value!r}, not {want[name]!r}"
        for name, value in now.items()
        if value != want[name] and not (name in shape and want.get("discard_max") == "0")
    )


def other_keys(host: RigHost, **parameters: int) -> None:
    """Load the back end whose parameter `keys` says what it publishes."""
    host.load_back(back_end(host, "other-keys"), **parameters)


@SMALL
def test_disk_has_the_features_that_are_offered(host: RigHost, lun: RigLun) -> None:
    domu = host.create()
    other_keys(host)
    wrong: dict[str, str] = {}
    for keys, less in FEATURES.items():
        host.set_back(keys=keys)
        partition(lun)
        domu.attach(lun)
        if words := differing(limits(domu), OWN | less):
            wrong[keys] = words
        elif "info" not in keys and domu.fill() != domu.sum():
            wrong[keys] = "what is read is not what was written"
        domu.detach()
        domu.wait_gone()
    assert not wrong, "the front end does not take what was offered:\n" + "\n".join(
        f"{keys or 'the own keys'}: {words}" for keys, words in wrong.items()
    )


MOVES: dict[str, dict[str, str]] = {
    "feature-flush-cache=0 discard-granularity=4096 discard-alignment=2048 "
    "feature-max-indirect-segments=12": {
        **BARRIER,
        **TWELVE,
        "discard_granularity": "4096",
        "discard_alignment": "2048",
    },
    "feature-flush-cache=0 feature-barrier=0 feature-discard=0 "
    "feature-max-indirect-segments=0": NOTHING,
    "": {},
}


@SMALL
def test_features_follow_the_back_end_over_restores(host: RigHost, lun: RigLun) -> None:
    """Others, none, and all again; test_series_resumed.py has requests under way."""
    domu = host.create()
    other_keys(host)
    partition(lun)
    domu.attach(lun)
    written = domu.fill()
    for keys, less in MOVES.items():
        host.set_back(keys=keys)
        domu.save_and_restore()
        words = differing(limits(domu), OWN | less)
        assert not words, f"the disk does not follow its new back end ({keys or 'all'}): {words}"
        assert domu.sum() == written, f"a disk restored with {keys or 'all'} has other data"
        written = domu.fill()


@SMALL
def test_capacity_follows_the_back_end_over_a_restore(host: RigHost, lun: RigLun) -> None:
    """The target's LUN may be of another size, or was resized meanwhile."""
    domu = host.create()
    other_keys(host)
    domu.attach(lun)
    host.set_back(keys="sectors=100000")
    domu.save_and_restore()
    until = Deadline("the disk's new size", SIZE_WITHIN)
    size = poll(lambda: limits(domu)["size"], until, until=lambda size: size == "100000")
    assert size == "100000", f"restored on a back end with 100000 sectors, the disk has {size}"


@SMALL
@pytest.mark.parametrize(
    ("most", "segments"),
    [(0, 11), (8, 11), pytest.param(16, 16, marks=pytest.mark.long), (256, 256)],
)
def test_front_end_limits_its_requests(
    host: RigHost, lun: RigLun, most: int, segments: int
) -> None:
    """By `max_indirect_segments`; the back end offers 256, and gets no larger request."""
    domu = host.create(disk=lun, front_parameters={"max_indirect_segments": most})
    known = limits(domu)
    want = {"max_segments": str(segments), "max_hw_sectors_kb": str(4 * segments)}
    words = differing({name: known[name] for name in want}, want)
    assert not words, f"with max_indirect_segments={most} {words}"
    domu.run("echo 1024 > /sys/block/xvda/queue/max_sectors_kb 2>/dev/null || true")
    before = domu.statistic("wr_req")
    assert domu.fill() == domu.sum(), f"requests of up to {segments} segments damage data"
    requests = domu.statistic("wr_req") - before
    least = -(-256 // segments)
    assert requests >= least, (
        f"1 MiB came in {requests} requests: larger than the {segments} segments allowed"
    )


def test_front_end_clamps_its_parameters(host: RigHost, lun: RigLun) -> None:
    """No more queues than CPUs, no fewer segments than a plain request holds."""
    domu = host.create(front=None)
    domu.log.mark()
    now = domu.load_front(max_queues=9, max_indirect_segments=0).parameters
    taken = {name: now.get(name) for name in ("max_queues", "max_indirect_segments")}
    want = {"max_queues": "1", "max_indirect_segments": "11"}
    assert taken == want, f"with 9 queues and no segments asked for the parameters are {taken}"
    lines = domu.log.lines("Invalid max_queues (9)")
    assert len(lines) == 1, f"the front end logs {lines} of a limit that it does not take"
    assert domu.attach(lun).pages == 1, "the disk does not connect as it should"
    assert domu.fill() == domu.sum(), "the disk does not work as it should"


TAKEN = re.compile(r"feature-|max-|multi-queue|discard-[gas]|sector|info|physical-sector")
"""Keys of a back end's driver, not of libxl or the hotplug script."""
OFFERED = {
    "feature-max-indirect-segments": "256",
    "multi-queue-max-queues": "1",
    "max-ring-page-order": "4",
    "max-ring-pages": "16",
}
CONNECTED = {
    "feature-flush-cache": "1",
    "feature-barrier": "1",
    "feature-discard": "1",
    "discard-granularity": "65536",
    "discard-alignment": "0",
    "discard-secure": "0",
    "feature-persistent": "1",
    "sectors": str(LUN_MIB << 11),
    "info": "0",
    "sector-size": "512",
    "physical-sector-size": "512",
}
CHOSEN = {
    "protocol": "x86_64-abi",
    "feature-persistent": "1",
    "ring-page-order": "2",
    "num-ring-pages": "4",
}


def published(domu: RigDomu) -> dict[str, str]:
    tree = domu.domain.back_tree()
    return {key: tree.get(key) or "" for key in tree.children() if TAKEN.match(key)}


@pytest.mark.parametrize("back", ["patched", pytest.param("stock", marks=pytest.mark.long)])
def test_keys_are_these_and_no_others(host: RigHost, lun: RigLun, back: str) -> None:
    """Before a front end answers, and when both are connected. A stock one knows the order alone.

    The front end's own keys are checked beside: neither end writes what no one defines.
    """
    offered = {key: v for key, v in OFFERED.items() if back == "patched" or key != "max-ring-pages"}
    domu = host.create(front=None, back=back)
    domu.offer(lun)
    before, given = published(domu), set(domu.domain.front_tree().children())
    assert before == offered, f"before it connects the back end publishes {before}, not {offered}"
    domu.load_front(max_ring_pages=4)
    domu.wait_connected()
    now, want = published(domu), offered | CONNECTED
    assert now == want, f"connected, the back end publishes {now}, not {want}"
    tree = domu.domain.front_tree()
    own = {key: tree.get(key) for key in tree.children() if key not in given}
    rings = [key for key in own if key.startswith("ring-ref") or key == "event-channel"]
    assert len(rings) == 5, f"four pages and one event channel are published as {sorted(rings)}"
    other = {key: value for key, value in own.items() if key not in rings}
    want = {key: value for key, value in CHOSEN.items() if key not in given}
    assert other == want, f"the front end publishes {other}, not {want}"


def test_discard_can_be_forbidden(host: RigHost, lun: RigLun) -> None:
    """By the tool stack's `discard-enable`, whatever the LUN can do."""
    domu = host.create(front=None)
    domu.offer(lun)
    host.xen.write({f"{domu.domain.back_path()}/discard-enable": 0})
    domu.load_front()
    domu.wait_connected()
    offered = {key: value for key, value in published(domu).items() if "discard" in key}
    offered.pop("discard-enable", None)
    assert offered in ({}, {"feature-discard": "0"}), (
        f"a back end that must not discard publishes {offered}"
    )
    most = limits(domu)["discard_max"]
    assert most == "0", f"the front end discards up to {most} bytes, which nobody offers"


def test_discard_can_be_forbidden_later(host: RigHost, lun: RigLun) -> None:
    """`discard-enable` counts anew for each connection."""
    domu = host.create(disk=lun)
    offered = published(domu).get("feature-discard")
    assert offered == "1", f"the back end may discard, and publishes {offered}"
    domu.unbind_front()
    host.xen.write({f"{domu.domain.back_path()}/discard-enable": 0})
    domu.load_front()
    domu.wait_connected()
    offered = published(domu).get("feature-discard")
    assert offered in (None, "0"), (
        "a back end that may not discard any more still offers what it did in its last connection"
    )
    most = limits(domu)["discard_max"]
    assert most == "0", f"the front end discards up to {most} bytes, which is forbidden"


def test_persistent_grants_are_agreed_on_when_connecting(host: RigHost, lun: RigLun) -> None:
    """`feature_persistent` may change between the offer and the connection, and before another."""
    domu = host.create(front=None)
    domu.offer(lun)
    wrong: dict[str, str] = {}
    for number, (persistent, front) in enumerate(((0, 1), (1, 1), (1, 0), (0, 0), (1, 1))):
        host.set_back(feature_persistent=persistent)
        if number:
            domu.unbind_front()
        domu.load_front(feature_persistent=front)
        ring = domu.wait_connected()
        written, views = domu.fill(), domu.queues()
        assert views.front, "the front end shows no queue"
        assert views.back, "the back end shows no queue"
        counts = {"front": views.front[0].persistent, "back": views.back[0].persistent}
        agreed = bool(persistent and front)
        if ring.persistent != agreed:
            wrong[f"{number}"] = f"back {persistent}, front {front}: agreed on {ring.persistent}"
        elif [bool(count) for count in counts.values()] != [agreed, agreed]:
            wrong[f"{number}"] = f"back {persistent}, front {front}: grants kept: {counts}"
        elif domu.sum() != written:
            wrong[f"{number}"] = "what is read is not what was written"
    assert not wrong, f"persistent grants are not what both ends agreed on last: {wrong}"
