"""Both ends of a disk, for tests of the driver series: loaded, published by hand, heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from emu.channel.channel import Channel
from emu.images.cache import Cache
from emu.images.modules import ENDS, End
from emu.lab.stack import Stack, kernel_log
from emu.rig import RigDomu, RigHost
from emu.rig.disks import DATA_WITHIN
from emu.xen import data
from emu.xen.config import virtual_device
from emu.xen.drivers import LoadedDriver
from emu.xen.ring import Ring
from emu.xen.xenstore import XENBUS_STATES

DISK = "xvda"
LATER = pytest.mark.stack(kernel="debian-6.12", domu_memory=256)
"""For the few cases that run on the other kernel of the series by default, too; all of them
do with `--kernel debian-6.12`. The packaged kernel: nothing needs to be built for it."""
INIT_WAIT, INITIALISED, CONNECTED, CLOSING = "InitWait", "Initialised", "Connected", "Closing"
SETTLES_WITHIN = 20.0
"""Seconds in which an end has answered a change of the other's state."""
_NUMBERS = {name: number for number, name in XENBUS_STATES.items()}


@dataclass
class Ends:
    """The drivers of one running stack, and what their kernels say."""

    host: RigHost
    _heard: dict[str, int] = field(default_factory=dict)

    @property
    def stack(self) -> Stack:
        return self.host.stack

    @property
    def domu(self) -> RigDomu:
        return self.host.domus[0]

    @property
    def cache(self) -> Cache:
        return self.host.cache

    def channel(self, end: End) -> Channel:
        return self.stack.domain.channel if end == "front" else self.stack.host.dom0

    def load(self, end: End, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Swap one end's driver in."""
        return self.domu.load(end, which, **parameters)

    def attach(self) -> None:
        """Make the disk; returns when the back end waits for the front end's keys."""
        self.stack.domain.attach(self.stack.lun, DISK)
        self.wait_back(INIT_WAIT, CONNECTED)

    def connect(self, order: int) -> Ring:
        """Load the patched front end with `order` beside what dom0 runs, and wait for the disk."""
        self.load("front", max_ring_page_order=order)
        self.attach()
        return self.stack.domain.wait_connected(DISK)

    def unbind_front(self) -> None:
        """Take the front end's driver off the disk, which stays; a bound driver can't go."""
        device = f"vbd-{virtual_device(DISK)}"
        self.channel("front").run(f"echo {device} > /sys/bus/xen/drivers/vbd/unbind", timeout=30)

    def listen(self, *ends: End) -> None:
        """Forget what was said up to now, by `ends` (both, if none is named)."""
        for end in ends or ENDS:
            self._heard[end] = len(self._lines(end))

    def listen_from_start(self) -> None:
        """Forget what was said before the test; a checkpoint knows how much that was."""
        if lines := self.stack.kernel_lines:
            self._heard = {"front": lines["domu"], "back": lines["dom0"]}
        else:
            self.listen()

    def said(self, end: End, word: str = "") -> list[str]:
        """Lines of an end's kernel log with `word` in them, since `listen`."""
        return [line for line in self._lines(end)[self._heard.get(end, 0) :] if word in line]

    def errors(self) -> list[str]:
        """What dom0's kernel reported of this disk as an error, since `listen`."""
        name = f"vbd-{self.stack.domain.domid}-{virtual_device(DISK)}: "
        return self.said("back", f"vbd {name}")

    def publish(self, keys: Mapping[str, str | int], state: str = INITIALISED) -> None:
        """Be the front end: write keys into its directory at once, then its state."""
        root = self.stack.domain.front_path(DISK)
        pairs = [str(word) for key, value in keys.items() for word in (f"{root}/{key}", value)]
        if pairs:
            self.stack.host.dom0.run(["xenstore-write", "--", *pairs], timeout=20)
        self.stack.host.dom0.run(
            ["xenstore-write", f"{root}/state", str(_NUMBERS[state])], timeout=20
        )

    def wait_back(self, *states: str) -> str:
        """Wait until the back end stands at one of `states`; which."""
        return self.stack.domain.wait_state("back", *states, disk=DISK, timeout=SETTLES_WITHIN)

    def refusal(self) -> str:
        """Wait until the back end has refused the connection; its error key."""
        self.wait_back(CLOSING)
        return self.stack.domain.error("back", DISK)

    def sum_of_disk(self, mib: int = 1) -> str:
        """SHA-256 of the disk's first MiB, read past the page cache in the domU."""
        return data.read(self.channel("front"), DISK, mib, DATA_WITHIN)

    def fill_disk(self, mib: int = 1) -> str:
        """Write random data to the disk's first MiB in the domU; its SHA-256."""
        return data.write(self.channel("front"), DISK, mib, DATA_WITHIN)

    def _lines(self, end: End) -> list[str]:
        return kernel_log(self.channel(end))
