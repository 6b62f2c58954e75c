"""What tests of drivers check again and again, with messages that name the flaw."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from emu.rig import FIRST_DISK, RigDomu, RigLun
from emu.rig.disks import EndName
from emu.xen.queues import BackQueue, FrontQueue
from emu.xen.ring import Ring

READ_ONE = "dd if=/dev/{} of=/dev/null bs=4k count=1 iflag=direct"
READ_MANY = "dd if=/dev/{} of=/dev/null bs=128k count=1 iflag=direct"
"""Read the first page of a disk, and the first 32, past the domU's cache."""


def check_data(domu: RigDomu, disk: RigLun | str = FIRST_DISK, mib: int = 1) -> str:
    """What is written to a disk is read from it; its SHA-256."""
    written = domu.fill(disk, mib)
    check_holds(domu, written, disk, mib)
    return written


def check_holds(
    domu: RigDomu, written: str, disk: RigLun | str = FIRST_DISK, mib: int = 1, *, after: str = ""
) -> None:
    """A disk holds what was written to it before."""
    read = domu.sum(disk, mib)
    assert read == written, (
        f"the first {mib} MiB of {domu.disk(disk)} are not what was written"
        f"{' ' + after if after else ''}: SHA-256 {read[:12]}…, not {written[:12]}…"
    )


def check_pages(ring: Ring, pages: int, why: str = "") -> None:
    """The ends have agreed on so many pages."""
    assert ring.pages == pages, (
        f"the ends agreed on a ring of {ring.pages} pages, not {pages}{' ' + why if why else ''}"
    )


def check_queues(ring: Ring, queues: int) -> None:
    """The ends have agreed on so many queues."""
    assert len(ring.queues) == queues, (
        f"the ends agreed on {len(ring.queues)} queues, not {queues}: each brings a ring"
    )


def check_quiet(domu: RigDomu, end: EndName = "back", disk: RigLun | str = FIRST_DISK) -> None:
    """A driver has logged no error of a disk."""
    errors = domu.errors(end, disk)
    assert not errors, f"the {end} end logged errors of a disk that works: {errors}"


def check_unmapped(domu: RigDomu, before: Collection[int]) -> None:
    """dom0 maps of the domU what it did before there was a disk."""
    now = domu.mapped_refs()
    more, less = sorted(now - set(before)), sorted(set(before) - now)
    assert not more, f"dom0 still maps references {more} of a disk that is gone"
    assert not less, f"dom0 unmapped references {less}, which are not the disk's"


def shown(
    domu: RigDomu, queue: int = 0, disk: RigLun | str = FIRST_DISK
) -> tuple[FrontQueue, BackQueue]:
    """What the two ends show of one queue of a disk."""
    views = domu.queues(disk)
    assert views.front, "the front end shows no queue"
    assert views.back, "the back end shows no queue"
    return views.front[queue], views.back[queue]


def only(lines: Iterable[str], what: str) -> str:
    """The one line there is to be."""
    found = list(lines)
    assert len(found) == 1, f"{len(found)} lines, not one, {what}: {found}"
    return found[0]


def refusals(domu: RigDomu) -> list[str]:
    """What the front end has logged of requests that the back end does not know, since the mark."""
    return [line.rpartition(": ")[2] for line in domu.log.lines("op failed")]
