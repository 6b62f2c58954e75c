"""A running domU: its channel, its console, its block devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from emu.channel.channel import Channel, CommandFailed, CommandTimeout, Process
from emu.channel.result import ChannelLost
from emu.deadline import Deadline, poll
from emu.errors import GuestError, NotHeld, RigError
from emu.machine.console import Console
from emu.xen import queues as queue_views
from emu.xen import ring as ring_view
from emu.xen import xenstore
from emu.xen.disk import PLAIN, DiskOptions
from emu.xen.dmesg import log_tail
from emu.xen.lun import Lun
from emu.xen.vdev import parse, virtual_device

if TYPE_CHECKING:
    from emu.xen.host import Host

_CONNECTIONS = 3
"""So often a command channel is opened that ends before the agent has answered."""
CONNECT_TIMEOUT = 30.0
"""Seconds for both ends of a disk to connect, before scaling."""


class NoDomain(GuestError):
    """A domain that was asked for does not run."""


class Domain:
    """One domU of a host. Restored or migrated it is another, which `Host.domain` returns."""

    def __init__(self, host: Host, name: str, domid: int, tty: str) -> None:
        self.host = host
        self.name = name
        self.domid = domid
        self.tty = tty
        """The terminal in dom0 on which xenconsoled serves the first console."""
        self.servers: dict[str, Domain] = {}
        """The domUs that serve its disks, by disk; dom0 serves all others (`emu.xen.served`)."""
        self._channel: Channel | None = None
        self._console: Console | None = None
        self._reader: Process | None = None

    @property
    def channel(self) -> Channel:
        """The command channel into the domU. Raises RigError before `open_channel`."""
        if self._channel is None:
            raise RigError(f"domU {self.name} has no open channel")
        return self._channel

    @property
    def is_open(self) -> bool:
        """Whether its command channel is open: not before `open_channel`, nor after `close`."""
        return self._channel is not None

    @property
    def console(self) -> Console:
        """The domU's first console, as its kernel and shell write it."""
        if self._console is None:
            raise RigError(f"domU {self.name} has no open console")
        return self._console

    def open_console(self) -> Console:
        """Follow the domU's first console from now on (what xenconsoled buffered comes first)."""
        console, self._reader = self.host.follow_tty(self.tty, self.name)
        self._console = console
        return console

    def open_channel(self, timeout: float = 60.0) -> Channel:
        """Connect to the guest agent in the domU; waits until it answers."""
        for attempt in range(_CONNECTIONS):
            bridge = self.host.dom0.bridge(f"/run/emu/channel/{self.domid}")
            channel = Channel(bridge, name=self.name, guard=self.host.machine.watch)
            try:
                channel.hello(timeout)
                break
            except ChannelLost:
                # Linux 7 may drop its console and probe it anew, see emu-channeld.c.
                channel.close()
                if attempt == _CONNECTIONS - 1:
                    raise
        self._channel = channel
        return channel

    def attach(self, lun: Lun, disk: str = "xvda", options: DiskOptions = PLAIN) -> None:
        """Give the domU `lun` as `disk`; returns when libxl has made the back end.

        The front end connects by itself when its driver is there: see `wait_connected`.
        """
        words = options.words(lun.device, disk)
        if options.trusted:
            self.host.xl("block-attach", str(self.domid), words, timeout=60)
            return
        # The front end reads the key before it connects, as soon as the device is there.
        with self.paused():
            self.host.xl("block-attach", str(self.domid), words, timeout=60)
            self.host.write({f"{self.front_path(disk)}/trusted": 0})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No vCPU of the domU runs while the body does; dom0 goes on with its requests."""
        self.host.xl("pause", str(self.domid))
        try:
            yield
        finally:
            self.host.xl("unpause", str(self.domid))

    def detach(self, disk: str = "xvda") -> None:
        """Take the disk away and wait until both ends have closed it.

        Raises NotHeld, with xl's words and both states, when they have not in xl's ten seconds
        (LIBXL_DESTROY_TIMEOUT): then they still may, and the keys stay.
        """
        try:
            self.host.xl("block-detach", str(self.domid), disk, timeout=60)
        except CommandFailed as failed:
            states = [self.front_tree(disk).state(), self.back_tree(disk).state()]
            here = (each.state for each in self.host.list() if each.domid == self.domid)
            paused = ", the domU is paused" if "p" in next(here, "") else ""
            raise NotHeld(
                f"{disk} of domU {self.name} was not detached: front end {states[0]}, back end "
                f"{states[1]}{paused}",
                lines=failed.lines,
            ) from None

    def front_path(self, disk: str = "xvda") -> str:
        """Where the front end's directory is in xenstore."""
        return f"/local/domain/{self.domid}/device/vbd/{virtual_device(disk)}"

    def back_path(self, disk: str = "xvda") -> str:
        """Where the back end's directory is in xenstore."""
        home = self.back_domid(disk)
        return f"/local/domain/{home}/backend/vbd/{self.domid}/{virtual_device(disk)}"

    def back_domid(self, disk: str = "xvda") -> int:
        """The domain that its back end is in: dom0, or another domU."""
        return self.servers[disk].domid if disk in self.servers else 0

    def back_channel(self, disk: str = "xvda") -> Channel:
        """The command channel to where its back end is. Raises RigError of a domU that ended."""
        return self.servers[disk].channel if disk in self.servers else self.host.dom0

    def front_tree(self, disk: str = "xvda") -> xenstore.XenstoreTree:
        """The front end's directory in xenstore."""
        return self.host.xenstore(self.front_path(disk))

    def back_tree(self, disk: str = "xvda") -> xenstore.XenstoreTree:
        """The back end's directory in xenstore."""
        return self.host.xenstore(self.back_path(disk))

    def wait_state(
        self, end: Literal["front", "back"], *states: str, disk: str = "xvda", timeout: float
    ) -> str:
        """Wait until an end of a disk is in one of `states`; which.

        `timeout` in seconds before scaling. Raises NotHeld with the state it is in.
        """
        path = (self.front_path if end == "front" else self.back_path)(disk) + "/state"
        deadline = Deadline(f"the {end} end of {disk}", timeout)
        now = poll(
            lambda: xenstore.state_of(path, self.host.read(path)),
            deadline,
            until=lambda state: state in states,
        )
        if now not in states:
            raise NotHeld(
                f"the {end} end is in {now}, not in {' or '.join(states)}, "
                f"after {deadline.spent:.0f} s",
                lines=log_tail(self.back_channel(disk)),
            )
        return now

    def ring(self, disk: str = "xvda") -> ring_view.Ring:
        """The ring that both ends have negotiated for `disk`."""
        views = self.queues(disk)
        return ring_view.negotiated(self.front_tree(disk), self.back_tree(disk), views)

    def queues(self, disk: str = "xvda") -> queue_views.Views:
        """What both drivers show of the disk's queues, where they do."""
        number = virtual_device(disk)
        return queue_views.read(self.channel, self.back_channel(disk), self.domid, number)

    def back_queues(self, disk: str = "xvda") -> tuple[queue_views.BackQueue, ...] | None:
        """What the back end alone shows of the disk's queues: also of a domU that is paused."""
        back = self.back_channel(disk)
        return queue_views.read_back(back, self.domid, virtual_device(disk))

    def wait_connected(
        self, disk: str = "xvda", timeout: float = CONNECT_TIMEOUT
    ) -> ring_view.Ring:
        """Wait until both ends are Connected and the disk is there; the ring they agreed on.

        Raises NotHeld with both states and the tails of both kernels' logs when they do not.
        """
        started = time.monotonic()
        with contextlib.suppress(CommandTimeout):
            vdev = parse(disk)
            # Another disk may have the name: Linux calls xvda, hda and sda alike.
            device = f"/sys/bus/xen/devices/vbd-{vdev.number}/block/{vdev.linux}"
            words = (f"/dev/{vdev.linux}", device)
            self.channel.wait_until("[ -b $1 -a -e $2 ]", words[0], timeout, *words)
            ring = self.ring(disk)
            if ring.connected:
                return ring
        front, back = self.front_tree(disk), self.back_tree(disk)
        waited = time.monotonic() - started
        lines = [*log_tail(self.channel), *log_tail(self.back_channel(disk))]
        raise NotHeld(
            f"{disk} of domU {self.name} did not connect within {waited:.0f} s: front end "
            f"{front.state()}, back end {back.state()}, {self.reported(disk)}",
            lines=lines,
        )

    def error(self, end: str, disk: str = "xvda") -> str:
        """What the driver of an end ("front", "back") last reported to xenbus of a disk, or ""."""
        if end == "front":
            home, path = self.domid, self.front_path(disk)
        else:
            home, path = self.back_domid(disk), self.back_path(disk)
        root = f"/local/domain/{home}"
        return self.host.read(f"{root}/error{path.removeprefix(root)}/error") or ""

    def reported(self, disk: str = "xvda") -> str:
        """What both drivers last reported of a disk, for a message."""
        errors = {end: self.error(end, disk) for end in ("front", "back")}
        words = [f"the {end} end reported {error!r}" for end, error in errors.items() if error]
        return ", ".join(words) or "neither reported an error"

    def record(self) -> dict[str, str | int]:
        """What `Host.adopt` takes to find it again."""
        return {"name": self.name, "domid": self.domid, "tty": self.tty}

    def leave(self) -> None:
        """Let whoever wants something of the domU have it now (`Host.leaving`): it will end."""
        if self._channel is not None and self.host.leaving is not None:
            self.host.leaving(self._channel)

    def close(self) -> None:
        """Let go of the channel and the console; the domU keeps running."""
        self.leave()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._console is not None:
            self._console.close()
            self._console = None

    def destroy(self) -> None:
        """End the domU at once."""
        self.close()
        self.host.xl("destroy", str(self.domid), timeout=60)
