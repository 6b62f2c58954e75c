"""The series on kernels that check themselves: data, many attachments, reloads, and no report.

Any report on a console fails a test, by its name: see the fixture `stack`. Leaks are asked
for at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import debugging
import pytest
from ends import DISK, SETTLES_WITHIN, Ends

from emu.channel.channel import Channel
from emu.images import fio as fio_program
from emu.images.context import BuildContext
from emu.images.modules import End
from emu.xen import fio

pytestmark = [pytest.mark.debug, pytest.mark.timeout(2400)]

PV = pytest.param(
    ("back", "front"), id="pv", marks=pytest.mark.stack(kernel="lab-debug", domu_memory=256)
)
PVH = pytest.param(
    ("back",),
    id="pvh with KASAN",
    marks=pytest.mark.stack(
        kernel="lab-debug", domu_kernel="lab-kasan", domu="pvh", domu_memory=384
    ),
)
KINDS = pytest.mark.parametrize("traced", [PV, PVH])
"""`traced`: the ends whose kernel is lab-debug, which knows of leaks and of who holds what."""
PAGES = pytest.mark.parametrize("pages", [1, 64])
TIMES = 50
MODULE: dict[End, str] = {"front": "xen_blkfront", "back": "xen_blkback"}


@contextlib.contextmanager
def nothing_left(ends: Ends, traced: tuple[End, ...]) -> Iterator[None]:
    """What is done inside leaks nothing, and leaves memory and grants as they were."""

    def state() -> dict[str, int]:
        mapped = ends.stack.host.grants().of(ends.stack.domain.domid).mapped_by(0)
        found = {"grants mapped by dom0": len(mapped)}
        for end in traced:
            held = debugging.held(ends.channel(end), MODULE[end])
            found |= {f"{end}: {place}": count for place, count in held.items()}
        return found

    for end in traced:
        debugging.forget_leaks(ends.channel(end))
    before = state()
    yield
    # dom0 does not wait for the last steps of a domU that has let go of its disk.
    until = time.monotonic() + SETTLES_WITHIN
    while (more := difference(before, state())) and time.monotonic() < until:
        time.sleep(0.5)
    assert more == {}
    for end in traced:
        # The console tells only how many there are; kmemleak's own words say where from.
        guest = ends.stack.domain.name if end == "front" else "dom0"
        with ends.stack.machine.watch.allow("kernel memory leak", guest=guest):
            assert debugging.leaks(ends.channel(end)) == ""


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """How much more there is of what."""
    more = {name: after.get(name, 0) - before.get(name, 0) for name in before.keys() | after.keys()}
    return {name: count for name, count in more.items() if count}


def round_trip(ends: Ends, pages: int) -> None:
    """Attach, connect, move a little data, detach."""
    ends.stack.domain.attach(ends.stack.lun, DISK)
    assert ends.stack.domain.wait_connected(DISK).pages == pages
    write_and_read(ends.channel("front"))
    ends.stack.domain.detach(DISK)


def write_and_read(domu: Channel) -> None:
    script = (
        "dd if=/dev/zero of=/dev/$1 bs=128k count=4 oflag=direct 2>/dev/null && "
        "dd if=/dev/$1 of=/dev/null bs=4k count=4 iflag=direct 2>/dev/null"
    )
    domu.run(["sh", "-c", script, "sh", DISK], timeout=60)


@KINDS
@PAGES
def test_fio_verifies(ends: Ends, traced: tuple[End, ...], pages: int) -> None:
    ends.load("back")
    ends.load("front", max_ring_page_order=pages.bit_length() - 1)
    round_trip(ends, pages)
    fio.install(ends.channel("front"), fio_program.build(BuildContext(ends.cache)))
    with nothing_left(ends, traced):
        ends.attach()
        assert ends.stack.domain.wait_connected(DISK).pages == pages
        for checksum in ("crc32c", "sha256"):
            done = fio.verify(ends.channel("front"), DISK, mib=16, checksum=checksum)
            assert done.write_bytes == done.read_bytes == 16 << 20
        ends.stack.domain.detach(DISK)


@KINDS
@PAGES
def test_fifty_times(ends: Ends, traced: tuple[End, ...], pages: int) -> None:
    ends.load("back")
    ends.load("front", max_ring_page_order=pages.bit_length() - 1)
    round_trip(ends, pages)
    with nothing_left(ends, traced):
        for _ in range(TIMES):
            round_trip(ends, pages)
    assert ends.errors() == []


@KINDS
def test_loaded_again(ends: Ends, traced: tuple[End, ...]) -> None:
    ends.load("back")
    ends.load("front", max_ring_page_order=6)
    round_trip(ends, 64)
    with nothing_left(ends, traced):
        before = 6
        for order in (0, 6, 0, 6):
            ends.load("back")
            round_trip(ends, 1 << before)
            ends.load("front", max_ring_page_order=order)
            round_trip(ends, 1 << order)
            before = order
    assert ends.errors() == []
