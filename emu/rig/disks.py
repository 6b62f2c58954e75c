"""The disks of a domU: given, taken away, looked at from both ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emu.channel.channel import Channel, CommandFailed
from emu.deadline import Deadline, poll
from emu.errors import EmuError, NotHeld, RigError
from emu.rig.kernel_log import KernelLog
from emu.rig.lun import RigLun
from emu.xen import data, served
from emu.xen.disk import DiskOptions, DiskWords
from emu.xen.dmesg import log_tail
from emu.xen.domain import Domain
from emu.xen.queues import Views
from emu.xen.ring import Ring
from emu.xen.vdev import disk_names, parse, virtual_device

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from emu.rig.host import RigHost

FIRST_DISK = "xvda"
STATE_WITHIN = 20.0
"""Seconds until an end has answered a change of the other's state."""
OUTSTANDING_WITHIN = 30.0
"""Seconds in which the requests of a test have reached the ring."""
GONE_WITHIN = 20.0
"""Seconds until a domU has removed the device of a detached disk."""
DATA_WITHIN = 120.0
EndName = Literal["front", "back"]


@dataclass(frozen=True)
class GivenDisk:
    """A disk that a domU was given: `lun`, or a `partition` of it. `at_boot`: it was there before
    the kernel; `server`: the domU that serves it, where dom0 does not."""

    lun: RigLun
    partition: int | None = None
    at_boot: bool = False
    server: DomuDisks | None = None


class DomuDisks:
    """A domU with its disks. A disk is named by its LUN, or in xl's words ("xvda")."""

    def __init__(self, host: RigHost, name: str, log_lines: int = 0) -> None:
        self.host = host
        """The host it runs on: another one after a migration."""
        self.name = name
        """Its name for xl."""
        self.log = KernelLog(lambda: self.channel, log_lines)
        """What its kernel logs, from now on."""
        self.ended = False
        """Whether it was destroyed or shut down."""
        self._disks: dict[str, GivenDisk] = {}

    @property
    def domain(self) -> Domain:
        """The domain that it is now, with the verbs and views of `emu.xen`.

        Raises RigError while it runs nowhere.
        """
        return self.host.xen.domain(self.name)

    @property
    def channel(self) -> Channel:
        """The command channel into the domU."""
        return self.domain.channel

    def channel_of(self, end: EndName, disk: RigLun | str | None = None) -> Channel:
        """The command channel to where an end's driver runs: this domU, or its dom0 (of a `disk`
        that another domU serves: that)."""
        if end == "front":
            return self.channel
        return self.domain.back_channel(self.disk(disk)) if disk else self.host.dom0

    def log_of(self, end: EndName, disk: RigLun | str | None = None) -> KernelLog:
        """What the kernel logs in which an end's driver runs; `disk` as in `channel_of`."""
        if end == "front":
            return self.log
        server = self._server_of(self.disk(disk)) if disk else None
        return server.log if server else self.host.log

    # Attach and detach.

    def attach(self, lun: RigLun, disk: str | None = None, **options: Unpack[DiskWords]) -> Ring:
        """Give it `lun` as `disk` (default: the first free name), and wait for the ring.

        The name is one of xl's, see `emu.xen.vdev`; `mode`, `cdrom`, `discard`, `trusted` and
        `partition` are those of `emu.xen.disk.DiskOptions`.
        Raises NotHeld when it does not connect: then it is taken away again.
        """
        disk = self.offer(lun, disk, **options)
        try:
            return self.domain.wait_connected(disk)
        except NotHeld:
            self._give_up(disk)
            raise

    def _give_up(self, disk: str) -> None:
        """Take away a disk that was refused, of which the test has heard."""
        with contextlib.suppress(EmuError):
            try:
                self.force_detach(disk)
            except CommandFailed:  # xl of 4.14 knows no --force
                self.domain.detach(disk)
        self._disks.pop(disk, None)

    def offer(self, lun: RigLun, disk: str | None = None, **options: Unpack[DiskWords]) -> str:
        """Give it `lun` as `disk`, which is returned; wait for the back end alone. As `attach`.

        Raises NotHeld when that does not come to wait for a front end, or further: with what it
        reported, and at once, where it gives up (then the disk is taken away again).
        """
        disk = disk or self.free_name()
        asked = DiskOptions(**options)
        self.domain.attach(lun.lun, disk, asked)
        self._disks[disk] = GivenDisk(lun, asked.partition)
        if self.wait_back("InitWait", "Connected", "Closed", disk=disk) == "Closed":
            if error := self.domain.error("back", disk):
                lines = log_tail(self.host.dom0)
                self._give_up(disk)
                raise NotHeld(f"dom0 refuses {disk} of domU {self.name}: {error}", lines=lines)
            self.wait_back("InitWait", "Connected", disk=disk)
        return disk

    def booted_with(self, disks: Iterable[tuple[str, RigLun]]) -> None:
        """Know of the LUNs behind disks that its configuration gave it."""
        self._disks.update((name, GivenDisk(lun, at_boot=True)) for name, lun in disks)

    def _server_of(self, name: str) -> DomuDisks | None:
        """The domU that serves a disk; None: dom0 does."""
        given = self._disks.get(name)
        return given.server if given else None

    def free_name(self) -> str:
        """The first name that none of its disks has."""
        return next(name for name in disk_names() if name not in self._disks)

    def detach(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Take a disk away; returns when both ends have closed it.

        Raises NotHeld with both states when they have not in ten seconds: see `Domain.detach`.
        """
        name = self.disk(disk)
        if self._server_of(name):
            served.detach(self.domain, name)
        else:
            self.domain.detach(name)
        self._disks.pop(name, None)

    def force_detach(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Remove a disk's keys under both ends (`xl block-detach --force`)."""
        name = self.disk(disk)
        number = str(virtual_device(name))
        words = ("block-detach", "--force", str(self.domain.domid), number)
        self.host.xen.xl(*words, timeout=60)
        if self._server_of(name):
            served.forget(self.domain, name)
        self._disks.pop(name, None)

    def wait_gone(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Wait until the domU has no device of a detached disk: dom0 does not wait for that.

        A disk that is attached again before is taken for the old one. Raises CommandTimeout.
        """
        device = f"/sys/bus/xen/devices/{self.device('front', disk)}"
        self.channel.wait_until("[ ! -e $1 ]", f"{device} to be gone", GONE_WITHIN, device)

    def disk(self, of: RigLun | str = FIRST_DISK) -> str:
        """The name ("xvda") of a LUN's disk; the first, if it has several."""
        if isinstance(of, str):
            return of
        for disk, given in self._disks.items():
            if given.lun.name == of.name:
                return disk
        raise RigError(f"domU {self.name} has no disk on LUN {of.name}")

    def block(self, disk: RigLun | str = FIRST_DISK) -> str:
        """Linux' name in the domU of a disk: "xvda" also of hda and sda."""
        return parse(self.disk(disk)).linux

    @property
    def disks(self) -> tuple[str, ...]:
        """The names of its disks, in the order they were attached."""
        return tuple(self._disks)

    def lun(self, disk: RigLun | str = FIRST_DISK) -> RigLun:
        """The LUN behind a disk of its own."""
        name = self.disk(disk)
        if name not in self._disks:
            raise RigError(f"domU {self.name} has no disk {name}")
        return self._disks[name].lun

    def start_of(self, disk: RigLun | str = FIRST_DISK) -> int:
        """The byte of its LUN that a disk begins at: 0 but for a partition."""
        lun, partition = self.lun(disk), self._disks[self.disk(disk)].partition
        return 0 if partition is None else lun.start_of(partition)

    # Both ends of one.

    def device(self, end: EndName, disk: RigLun | str = FIRST_DISK) -> str:
        """The xenbus device of an end of a disk, as its kernel names it: "vbd-51712"."""
        number = virtual_device(self.disk(disk))
        return f"vbd-{number}" if end == "front" else f"vbd-{self.domain.domid}-{number}"

    def wait_connected(self, disk: RigLun | str = FIRST_DISK) -> Ring:
        """Wait until both ends of a disk are connected; the ring they agreed on."""
        return self.domain.wait_connected(self.disk(disk))

    def wait_back(
        self, *states: str, disk: RigLun | str = FIRST_DISK, timeout: float = STATE_WITHIN
    ) -> str:
        """Wait until a disk's back end is in one of `states`; which.

        `timeout` in seconds before scaling. Raises NotHeld with the state it is in.
        """
        return self.domain.wait_state("back", *states, disk=self.disk(disk), timeout=timeout)

    def wait_front(
        self, *states: str, disk: RigLun | str = FIRST_DISK, timeout: float = STATE_WITHIN
    ) -> str:
        """Wait until a disk's front end is in one of `states`; as `wait_back`."""
        return self.domain.wait_state("front", *states, disk=self.disk(disk), timeout=timeout)

    def unbind_front(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Unbind the domU's driver from a disk, which stays. A bound driver can't be unloaded."""
        _driver(self.channel, "xen", "unbind", self.device("front", disk))

    def unbind_back(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Unbind the back end's driver from a disk, which stays."""
        _driver(self.channel_of("back", disk), "xen-backend", "unbind", self.device("back", disk))

    def bind_back(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Bind the back end's driver to a disk again."""
        _driver(self.channel_of("back", disk), "xen-backend", "bind", self.device("back", disk))

    def errors(self, end: EndName = "back", disk: RigLun | str = FIRST_DISK) -> list[str]:
        """What an end's driver has logged of a disk as an error, since its log's mark."""
        return self.log_of(end, disk).lines(f"vbd {self.device(end, disk)}: ")

    def ring(self, disk: RigLun | str = FIRST_DISK) -> Ring:
        """The ring that both ends have negotiated."""
        return self.domain.ring(self.disk(disk))

    def queues(self, disk: RigLun | str = FIRST_DISK) -> Views:
        """What both drivers show of the disk's queues."""
        return self.domain.queues(self.disk(disk))

    def outstanding(self, disk: RigLun | str = FIRST_DISK) -> int:
        """Requests of the front end that the back end has not answered, in all queues.

        Raises NotHeld where the front end shows no queue: it is not connected, or stock.
        """
        numbers = [queue.outstanding for queue in self.queues(disk).front or ()]
        known = [number for number in numbers if number is not None]
        if not known or len(known) < len(numbers):
            raise NotHeld(f"the front end of {self.disk(disk)} shows no queue")
        return sum(known)

    def wait_outstanding(
        self,
        number: int,
        disk: RigLun | str = FIRST_DISK,
        *,
        or_more: bool = False,
        timeout: float = OUTSTANDING_WITHIN,
    ) -> int:
        """Wait until `number` requests, neither more nor fewer, are on the disk's rings; how many.

        `timeout` in seconds before scaling. Raises NotHeld with the number there are.
        """

        def enough(now: int) -> bool:
            return now == number or (or_more and now > number)

        until = Deadline("requests on the ring", timeout)
        now = poll(lambda: self.outstanding(disk), until, until=enough, pause=0.1)
        if not enough(now):
            least = " or more" if or_more else ""
            raise NotHeld(f"{now} requests are on the ring, not {number}{least}")
        return now

    def statistic(self, name: str, disk: RigLun | str = FIRST_DISK) -> int:
        """What the back end has counted since it connected: "wr_req", "rd_req", "f_req", …"""
        path = f"/sys/bus/xen-backend/devices/{self.device('back', disk)}/statistics/{name}"
        return int(self.channel_of("back", disk).run(["cat", path], timeout=20).text)

    # What the domU's block layer does with it.

    def fill(self, disk: RigLun | str = FIRST_DISK, mib: int = 1) -> str:
        """Write random data to the first MiB of a disk, past the page cache; its SHA-256."""
        return data.write(self.channel, self.block(disk), mib, DATA_WITHIN)

    def sum(self, disk: RigLun | str = FIRST_DISK, mib: int = 1) -> str:
        """SHA-256 of the first MiB of a disk, read past the page cache."""
        return data.read(self.channel, self.block(disk), mib, DATA_WITHIN)

    def queue_limits(self, *names: str, disk: RigLun | str = FIRST_DISK) -> dict[str, str]:
        """The block layer's settings of a disk by their names in /sys/block/<disk>/queue."""
        script = "cd /sys/block/$1/queue; shift; cat $*"
        words = ["sh", "-c", script, "sh", self.block(disk), *names]
        lines = self.channel.run(words, timeout=20).text.splitlines()
        return dict(zip(names, lines, strict=True))

    def hardware_queues(self, disk: RigLun | str = FIRST_DISK) -> int:
        """How many hardware queues the block layer has for a disk."""
        words = ["sh", "-c", "ls /sys/block/$1/mq | wc -l", "sh", self.block(disk)]
        return int(self.channel.run(words, timeout=20).text)


def _driver(channel: Channel, bus: str, verb: str, device: str) -> None:
    channel.run(f"echo {device} > /sys/bus/{bus}/drivers/vbd/{verb}", timeout=30)
