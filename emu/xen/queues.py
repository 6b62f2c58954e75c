"""What the drivers themselves show of a disk's queues, in debugfs: both ends, read in one go.

The driver series adds /sys/kernel/debug/xen-blkback/vbd-<domid>-<number>/queue-<n> in dom0
and /sys/kernel/debug/xen-blkfront/vbd-<number>/queue-<n> in the domU, one "name: number" a
line (guest-images/patches/xen-block/, the two patches "show the rings in debugfs"). Stock
drivers have neither: what is left then are the keys in xenstore (`emu.xen.ring`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from emu.channel.channel import Channel
from emu.errors import GuestError

DEBUGFS = "/sys/kernel/debug"
FRONT_ROOT = f"{DEBUGFS}/xen-blkfront"
BACK_ROOT = f"{DEBUGFS}/xen-blkback"

_LINE = re.compile(r"queue-(\d+):(\w+): (-?\d+)")
_NO_VIEW, _NO_DEVICE = 3, 4
# Nothing to mount where a kernel has no debugfs: then the view is not there either. A queue
# that goes away while it is read is no error (-s).
_SCRIPT = f"""
[ -d "$1" ] || grep -q ' {DEBUGFS} ' /proc/mounts || mount -t debugfs none {DEBUGFS} 2>/dev/null
[ -d "$1" ] || exit {_NO_VIEW}
cd "$1/$2" 2>/dev/null || exit {_NO_DEVICE}
grep -sH '' queue-*
exit 0
"""


@dataclass(frozen=True)
class QueueView:
    """One queue as an end shows it; None is a number that this driver does not show.

    `pages` of its ring, `size` in requests, `outstanding` requests. The indexes (`req_…`,
    `rsp_…`) run freely and wrap at 2**32. `other` holds the numbers that have no field here.
    """

    number: int
    pages: int | None = None
    size: int | None = None
    req_prod: int | None = None
    rsp_prod: int | None = None
    outstanding: int | None = None
    other: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def persistent(self) -> int | None:
        """Grants that stay mapped between requests, as far as this end knows of them."""
        raise NotImplementedError

    @property
    def deferred(self) -> int | None:
        """What this end could not give back when it wanted to, since it connected."""
        raise NotImplementedError

    def numbers(self) -> dict[str, int]:
        """All that is shown, by the driver's own names."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del named["number"], named["other"]
        return {name: value for name, value in named.items() if value is not None} | {**self.other}


@dataclass(frozen=True)
class FrontQueue(QueueView):
    """The front end's account: grants made for data, those of them not in a request.

    `segs`: for how many requests there is room for their segments.
    """

    rsp_cons: int | None = None
    persistent_grants_free: int | None = None
    grants_free: int | None = None
    grants: int | None = None
    grants_max: int | None = None
    segs: int | None = None
    deferred_frees: int | None = None

    @property
    def persistent(self) -> int | None:
        """Those that are in no request now."""
        return self.persistent_grants_free

    @property
    def deferred(self) -> int | None:
        """Pages that the back end still mapped when they were to be freed, of the whole disk."""
        return self.deferred_frees


@dataclass(frozen=True)
class BackQueue(QueueView):
    """The back end's account: `requests` allocated, grants and pages it holds for data."""

    req_cons: int | None = None
    requests: int | None = None
    persistent_grants: int | None = None
    persistent_grants_in_use: int | None = None
    free_pages: int | None = None
    deferred_unmaps: int | None = None

    @property
    def persistent(self) -> int | None:
        """All that are mapped, in use or not."""
        return self.persistent_grants

    @property
    def deferred(self) -> int | None:
        """Requests whose pages were unmapped later than they ended."""
        return self.deferred_unmaps


@dataclass(frozen=True)
class Views:
    """Both ends of a disk at about one instant. None: that end's driver has no such view.

    An end without queues (not connected, or just gone) is an empty tuple.
    """

    front: tuple[FrontQueue, ...] | None = None
    back: tuple[BackQueue, ...] | None = None

    @property
    def ends(self) -> dict[str, tuple[QueueView, ...]]:
        """The ends that show something, by name."""
        both: dict[str, tuple[QueueView, ...] | None] = {"front": self.front, "back": self.back}
        return {end: queues for end, queues in both.items() if queues}

    @property
    def any_end(self) -> tuple[QueueView, ...]:
        """The front end's queues, else the back end's; empty where neither shows any."""
        return self.front or self.back or ()


_View = TypeVar("_View", bound=QueueView)


def parse(text: str, kind: type[_View]) -> tuple[_View, ...]:
    """Read lines `queue-0:pages: 16`, as grep -H prints a device's files; in the queues' order.

    Raises GuestError for a line of any other form.
    """
    queues: dict[int, dict[str, int]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if not match:
            raise GuestError(f"a line of a driver's view that is no number: {line!r}")
        queues.setdefault(int(match[1]), {})[match[2]] = int(match[3])
    known = {f.name for f in dataclasses.fields(kind)} - {"number", "other"}
    return tuple(
        kind(
            number=number,
            other=MappingProxyType({n: v for n, v in numbers.items() if n not in known}),
            **{name: value for name, value in numbers.items() if name in known},
        )
        for number, numbers in sorted(queues.items())
    )


def read(domu: Channel, back: Channel, domid: int, device: int) -> Views:
    """What both ends show of a disk; `device` is its number (51712 for xvda), `back` leads to where
    its back end is."""
    return Views(
        front=_read(domu, FRONT_ROOT, f"vbd-{device}", FrontQueue),
        back=read_back(back, domid, device),
    )


def read_back(back: Channel, domid: int, device: int) -> tuple[BackQueue, ...] | None:
    """What the back end alone shows of a disk; None where its driver has no such view."""
    return _read(back, BACK_ROOT, f"vbd-{domid}-{device}", BackQueue)


def _read(channel: Channel, root: str, device: str, kind: type[_View]) -> tuple[_View, ...] | None:
    answer = channel.run(["sh", "-c", _SCRIPT, "sh", root, device], timeout=60, check=False)
    if answer.status == _NO_VIEW:
        return None
    if answer.status not in (0, _NO_DEVICE):
        output = answer.stderr.decode(errors="replace").splitlines()
        raise GuestError(f"{channel.name}: {root}/{device} can't be read", lines=output[-3:])
    return parse(answer.text, kind)
