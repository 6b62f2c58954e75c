"""The series: keys that a front end rewrites while they are read are those of one instant.

dom0 plays the front end. One shell flips between two sets of keys, each set in one
transaction, while another asks for connection after connection. No reference of either set
is a grant, so that each connection is refused with a message that shows what was read.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from emu.rig import RigDomu, RigHost, RigLun
from emu.rig.keys import FrontEndKeys

ATTEMPTS = 24
"""One in five is read while the keys change (run: 4 of 20, of a stock driver)."""
ATTEMPTS_STOCK = 60
"""Until a mixture is seen: the fifth on average."""
BATCH = 4
"""Connections whose lines fit into dom0's log of 128 KiB with ease, WARNINGs included."""
CHANGING = "the front end keeps changing its keys"
MIXED = "mixed"
SMALL, LARGE = 16, 64
"""Pages; the longer it takes to read a set, the likelier it changes meanwhile."""
SETS: dict[str, dict[str, str | int]] = {
    "small": {
        "protocol": "x86_64-abi",
        "feature-persistent": 1,
        "ring-page-order": 4,
        "num-ring-pages": SMALL,
        "event-channel": 101,
        **{f"ring-ref{page}": 1000000 + page for page in range(SMALL)},
        **{f"ring-ref{page}": "none" for page in range(SMALL, LARGE)},
    },
    "large": {
        "protocol": "x86_32-abi",
        "feature-persistent": 0,
        "ring-page-order": 6,
        "num-ring-pages": LARGE,
        "event-channel": 202,
        **{f"ring-ref{page}": 2000000 + page for page in range(LARGE)},
    },
}
# What one connection's lines show of a set that was read whole: the protocol, whether grants
# are persistent, the first reference.
WHOLE = {
    ("x86_64-abi", True, 1000000): "small",
    ("x86_32-abi", False, 2000000): "large",
}

FLIP = """
flip() { xenstore-write -- "$@" || exit 1; }
while :; do
    flip {small}
    flip {large}
done
"""
# States: 1 Initialising, 2 InitWait, 3 Initialised, 5 Closing, 6 Closed. The front end's
# `state` is not among the keys that change, nor does a transaction read it.
CONNECT = """
until_back() {
    echo "waiting for state $1 of the back end"
    until [ "$(xenstore-read $back/state)" = $1 ]; do usleep 2000; done
}
front=$1 back=$2
echo on > /proc/sys/kernel/printk_devkmsg  # no limit of lines a second
for attempt in $(seq $3); do
    echo "attempt $attempt" > /dev/kmsg
    xenstore-write $front/state 3; until_back 5
    xenstore-write $front/state 6; until_back 6
    xenstore-write $front/state 1; until_back 2
done
"""


def read_as(lines: list[str]) -> str:
    """Which set one attempt's lines of dom0's log show; `MIXED` for a bit of both."""
    text = "\n".join(lines)
    if CHANGING in text:
        return CHANGING
    using = re.search(r"using 1 queues, protocol \d+ \((\S+)\)(.*)", text)
    refused = re.search(r"mapping in shared page (\d+)", text)
    if not using or not refused:
        return MIXED
    return WHOLE.get((using[1], "persistent" in using[2], int(refused[1])), MIXED)


@contextlib.contextmanager
def flipping(domu: RigDomu) -> Iterator[None]:
    """The front end's keys change from one set to the other and back, as fast as dom0 can."""
    front = domu.domain.front_path()
    words = {
        name: " ".join(f"{front}/{key} {value}" for key, value in keys.items())
        for name, keys in SETS.items()
    }
    flip = FLIP.replace("{small}", words["small"]).replace("{large}", words["large"])
    writer = domu.host.dom0.spawn(["sh", "-c", flip])
    try:
        yield
        assert writer.ended is None, f"the writer ended: {writer.ended}"
    finally:
        writer.close()


def connections(domu: RigDomu, count: int) -> Iterator[list[str]]:
    """What dom0's kernel logs of each of so many connections, every one refused."""
    dom0 = domu.host.dom0
    front, back = domu.domain.front_path(), domu.domain.back_path()
    for _ in range(0, count, BATCH):
        dom0.run("dmesg -c > /dev/null", timeout=20)
        dom0.run(["sh", "-c", CONNECT, "sh", front, back, str(BATCH)], timeout=120)
        log = dom0.run("dmesg", timeout=20).text
        _, *attempts = re.split(r"^.*\] attempt \d+\n", log, flags=re.MULTILINE)
        assert len(attempts) == BATCH, "dom0's log does not hold all of them"
        yield from (attempt.splitlines() for attempt in attempts)


def played(host: RigHost, lun: RigLun, back: str) -> RigDomu:
    """A domU with a disk whose front end is dom0's, with the smaller set of keys."""
    domu = host.create(front=None, back=back)
    domu.offer(lun)
    FrontEndKeys(domu).publish(SETS["small"], state="Initialising")
    return domu


@pytest.mark.stack(kernel="lab")
def test_keys_are_read_at_one_instant(host: RigHost, lun: RigLun) -> None:
    domu = played(host, lun, "patched")
    with flipping(domu):
        logged = list(connections(domu, ATTEMPTS))
    seen = Counter(read_as(lines) for lines in logged)
    print(seen)
    mixed = [lines for lines in logged if read_as(lines) == MIXED]
    assert not mixed, f"keys that changed meanwhile were read half and half: {mixed[0]}"
    assert seen["small"] < ATTEMPTS, "the keys never changed"


@pytest.mark.long
@pytest.mark.stack(kernel="lab")
def test_stock_driver_mixes_keys(host: RigHost, lun: RigLun) -> None:
    """The race is there, and seen: a driver that reads key by key loses it."""
    domu = played(host, lun, "stock")
    with host.stack.machine.watch.allow("kernel WARNING", guest="dom0"), flipping(domu):
        for lines in connections(domu, ATTEMPTS_STOCK):
            if read_as(lines) == MIXED:
                return
    pytest.fail("no connection was refused for a mixture of the two sets")
