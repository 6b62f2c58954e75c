"""The series on kernels that check themselves: data, many attachments, reloads, and no report.

Any report on a console fails a test, by its name: see the fixture `stack`. kmemleak is asked
at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import debugging
import pytest

from emu.channel.channel import Channel
from emu.deadline import Deadline, poll
from emu.images import fio as fio_program
from emu.images.context import BuildContext
from emu.images.modules import End
from emu.rig import FIRST_DISK, RigDomu, RigHost, RigLun
from emu.rig.disks import STATE_WITHIN
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
"""`traced`: the ends whose kernel is lab-debug, which finds leaks and knows who allocated what."""
PAGES = pytest.mark.parametrize("pages", [1, 64])
TIMES = 50
MODULE: dict[End, str] = {"front": "xen_blkfront", "back": "xen_blkback"}


@contextlib.contextmanager
def nothing_left(domu: RigDomu, traced: tuple[End, ...]) -> Iterator[None]:
    """What is done inside leaks nothing, and leaves memory and grants as they were."""
    host = domu.host

    def state() -> dict[str, int]:
        mapped = host.xen.grants().of(domu.domain.domid).mapped_by(0)
        found = {"grants mapped by dom0": len(mapped)}
        for end in traced:
            held = debugging.held(domu.channel_of(end), MODULE[end])
            found |= {f"{end}: {place}": count for place, count in held.items()}
        return found

    for end in traced:
        debugging.forget_leaks(domu.channel_of(end))
    before = state()
    yield
    # dom0 does not wait for the last steps of a domU that has closed its disk.
    until = Deadline("everything to be given back", STATE_WITHIN)
    more = poll(lambda: difference(before, state()), until, until=lambda m: not m, pause=0.5)
    assert more == {}
    for end in traced:
        # The console has only their number; kmemleak's own report has the stacks.
        guest = domu.name if end == "front" else "dom0"
        with host.stack.machine.watch.allow("kernel memory leak", guest=guest):
            assert debugging.leaks(domu.channel_of(end)) == ""


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """How much more there is of what."""
    more = {name: after.get(name, 0) - before.get(name, 0) for name in before.keys() | after.keys()}
    return {name: count for name, count in more.items() if count}


def round_trip(domu: RigDomu, pages: int) -> None:
    """Attach, connect, move a little data, detach."""
    assert domu.attach(domu.host.lun).pages == pages
    write_and_read(domu.channel)
    domu.detach()


def write_and_read(domu: Channel) -> None:
    script = (
        "dd if=/dev/zero of=/dev/$1 bs=128k count=4 oflag=direct 2>/dev/null && "
        "dd if=/dev/$1 of=/dev/null bs=4k count=4 iflag=direct 2>/dev/null"
    )
    domu.run(["sh", "-c", script, "sh", FIRST_DISK], timeout=60)


@KINDS
@PAGES
def test_fio_verifies(host: RigHost, lun: RigLun, traced: tuple[End, ...], pages: int) -> None:
    domu = host.create(ring_pages=pages)
    round_trip(domu, pages)
    fio.install(domu.channel, fio_program.build(BuildContext(host.cache)))
    with nothing_left(domu, traced):
        assert domu.attach(lun).pages == pages
        for checksum in ("crc32c", "sha256"):
            done = fio.verify(domu.channel, domu.disk(lun), mib=16, checksum=checksum)
            assert done.write_bytes == done.read_bytes == 16 << 20
        domu.detach(lun)


@KINDS
@PAGES
def test_fifty_round_trips(host: RigHost, traced: tuple[End, ...], pages: int) -> None:
    domu = host.create(ring_pages=pages)
    round_trip(domu, pages)
    with nothing_left(domu, traced):
        for _ in range(TIMES):
            round_trip(domu, pages)
    assert domu.errors() == []


@KINDS
def test_drivers_are_loaded_again(host: RigHost, traced: tuple[End, ...]) -> None:
    domu = host.create(ring_pages=64)
    round_trip(domu, 64)
    with nothing_left(domu, traced):
        before = 64
        for pages in (1, 64, 1, 64):
            host.load_back()
            round_trip(domu, before)
            domu.load_front(max_ring_pages=pages)
            round_trip(domu, pages)
            before = pages
    assert domu.errors() == []
