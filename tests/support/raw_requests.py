"""Requests put on the ring as they are, by the front end of front-ends/raw-requests.patch.

domu = host.create(disk=lun, front=front_end(host, "raw-requests"))
front = RawFrontEnd(domu)
front.send(direct(READ, 0, front.segment(0)))
front.wait()
[answer] = front.answers()
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from emu.deadline import Deadline, poll
from emu.rig import FIRST_DISK, RigDomu
from emu.xen.vdev import virtual_device

PAGE = 4096
READ, WRITE, BARRIER, FLUSH, _, DISCARD, INDIRECT = range(7)
NAMES = {READ: "read", WRITE: "write", BARRIER: "barrier", FLUSH: "flush", DISCARD: "discard"}
"""Operations of include/xen/interface/io/blkif.h."""
OKAY, ERROR, UNSUPPORTED = 0, -1, -2
STATUSES = {OKAY: "okay", ERROR: "error", UNSUPPORTED: "not supported"}
DESCRIPTIONS, READ_ONLY, OTHERS, REVOKED = 16, 56, 60, 62
"""The first page for segments of indirect requests, the first that is granted to be read only,
to another domain, and no more at all."""
NEVER = 4000000
"""A reference beyond any grant table."""
ANSWERED_WITHIN = 10.0
_ROOT = "/sys/kernel/debug/raw"
_MOUNTED = f"[ -d {_ROOT} ] || mount -t debugfs none /sys/kernel/debug"
SIZE, SIZE_32 = 112, 108
"""Bytes of struct blkif_request, and in the layout of a 32-bit domU."""
_FIRST_ID = 1 << 40
_ids = itertools.count(_FIRST_ID)


@dataclass(frozen=True)
class Segment:
    """A part of a page, by its reference; `first` and `last` are sectors of 512 bytes."""

    ref: int
    first: int = 0
    last: int = 7

    def packed(self) -> bytes:
        """As struct blkif_request_segment."""
        return struct.pack("<IBBH", self.ref, self.first, self.last, 0)


@dataclass(frozen=True)
class Answer:
    """What stood on the ring as an answer."""

    id: int
    operation: int
    status: int

    def __str__(self) -> str:
        operation = NAMES.get(self.operation, f"operation {self.operation}")
        return f"{operation}: {STATUSES.get(self.status, f'status {self.status}')}"


Frame = int | tuple[Segment, ...]
"""A page that describes segments: a reference, or what it is to hold."""


@dataclass(frozen=True)
class Raw:
    """One request: struct blkif_request of x86_64, up to the references of `frames`.

    `answered_as` is the operation that its answer must have.
    """

    data: bytes
    answered_as: int
    id: int
    frames: tuple[Frame, ...] = ()


def direct(
    operation: int,
    sector: int,
    *segments: Segment,
    count: int | None = None,
    disk: str = FIRST_DISK,
    id: int | None = None,
) -> Raw:
    """A request of the classic shape; `count` segments are claimed, those given by default."""
    number = next(_ids) if id is None else id
    claimed = len(segments) if count is None else count
    head = struct.pack("<BBHIQQ", operation, claimed, virtual_device(disk), 0, number, sector)
    body = b"".join(segment.packed() for segment in segments)
    return Raw(head + body, operation, number)


def unknown_32(operation: int) -> Raw:
    """A request of no known operation in the layout of a 32-bit domU, whose id stands elsewhere."""
    number = next(_ids)
    return Raw(struct.pack("<BBHQ", operation, 1, 0, number), operation, number)


def discard(sector: int, sectors: int, flag: int = 0) -> Raw:
    """A discard of so many sectors of 512 bytes; flag 1: a secure one."""
    number = next(_ids)
    data = struct.pack("<BBHIQQQ", DISCARD, flag, 0, 0, number, sector, sectors)
    return Raw(data, DISCARD, number)


def indirect(
    operation: int, sector: int, *frames: Frame, count: int | None = None, disk: str = FIRST_DISK
) -> Raw:
    """An indirect request; `count` segments are claimed, those described by default."""
    number = next(_ids)
    claimed = sum(len(frame) for frame in frames if not isinstance(frame, int))
    claimed = claimed if count is None else count
    handle = virtual_device(disk)
    data = struct.pack("<BBHIQQHH", INDIRECT, operation, claimed, 0, number, sector, handle, 0)
    return Raw(data, operation, number, frames)


class RawFrontEnd:
    """The raw requests of a domU that has loaded the front end `raw-requests`, on one disk.

    `size` is that of a request on its ring, in bytes.
    """

    def __init__(self, domu: RigDomu, disk: str = FIRST_DISK, size: int = SIZE) -> None:
        self.domu = domu
        self.disk = disk
        self.size = size
        domu.run(_MOUNTED)
        self.refs = [int(word) for word in domu.run(f"cat {_ROOT}/refs").split()]
        """The references of the pages."""
        self.sent = len(self.answers())

    def segment(self, page: int) -> Segment:
        """All of a page."""
        return Segment(self.refs[page])

    def fill(self, page: int, data: bytes) -> None:
        """Write to the pages from `page` on."""
        self.domu.channel.put(data, "/tmp/raw")
        self.domu.run(f"dd if=/tmp/raw of={_ROOT}/pages bs=4096 seek={page} 2>/dev/null")

    def look(self, page: int) -> bytes:
        """What a page holds."""
        script = f"dd if={_ROOT}/pages bs=4096 skip={page} count=1 2>/dev/null"
        return self.domu.channel.run(script, timeout=30).stdout

    def send(self, *requests: Raw, ahead: int = 0) -> None:
        """Put requests on the ring, all at once, and show `ahead` more."""
        head = struct.pack("<IIiI", virtual_device(self.disk), 0, ahead, 0)
        self.domu.channel.put(head + self._described(requests), "/tmp/raw")
        self.domu.run(f"dd if=/tmp/raw of={_ROOT}/requests bs=4096 2>/dev/null")
        self.sent += len(requests)

    def wait(self) -> bool:
        """Wait until there are as many answers as requests; whether there are."""
        until = Deadline("answers to raw requests", ANSWERED_WITHIN)
        return poll(lambda: len(self.answers()) >= self.sent, until, pause=0.02)

    def answers(self) -> list[Answer]:
        """All answers to raw requests that ever came, on any disk, as they came."""
        lines = self.domu.run(f"cat {_ROOT}/answers").splitlines()
        return [Answer(*map(int, line.split())) for line in lines]

    def _described(self, requests: tuple[Raw, ...]) -> bytes:
        """The requests as they are put on the ring; the pages of indirect ones are filled."""
        described: dict[tuple[Segment, ...], int] = {}
        whole = []
        for request in requests:
            refs = []
            for frame in request.frames:
                if not isinstance(frame, int):
                    frame = self.refs[described.setdefault(frame, DESCRIPTIONS + len(described))]
                refs.append(struct.pack("<I", frame))
            whole.append(b"".join([request.data, *refs])[: self.size].ljust(self.size, b"\0"))
        if described:
            frames = (b"".join(segment.packed() for segment in frame) for frame in described)
            self.fill(DESCRIPTIONS, b"".join(frame.ljust(PAGE, b"\0") for frame in frames))
        return b"".join(whole)
