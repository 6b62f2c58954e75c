"""A host of the rig: loads back ends, gives out the domU and the LUN of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from emu.channel.channel import Channel
from emu.images.context import BuildContext
from emu.images.modules import Driver, End
from emu.lab import drivers
from emu.lab.stack import Stack
from emu.progress import Progress
from emu.rig.domu import RigDomu
from emu.rig.lun import RigLun
from emu.xen.drivers import LoadedDriver
from emu.xen.host import Host

BACK_PARAMETERS = "/sys/module/xen_blkback/parameters"


class RigHost:
    """One emulated host with what its stack was started with: a LUN and an idle domU.

    `loaded` are the drivers that run now, by end, as tests asked for them.
    """

    def __init__(self, stack: Stack, context: BuildContext) -> None:
        self.stack = stack
        self.cache = context.cache
        self.lun = RigLun(stack.lun, stack.host.dom0)
        self.loaded: dict[End, tuple[Driver, LoadedDriver]] = {}
        self._progress = context.progress or Progress()
        self._created = False

    @property
    def xen(self) -> Host:
        """Xen and dom0: verbs and views."""
        return self.stack.host

    @property
    def dom0(self) -> Channel:
        """The command channel into dom0."""
        return self.stack.host.dom0

    def driver(self, end: End, which: str = "patched") -> Driver:
        """One end's driver for this host's kernels: "stock", "patched", or a path."""
        return drivers.driver_for(
            end, which, self.stack.artifacts, BuildContext(self.cache, self._progress)
        )

    def load(
        self, end: End, channel: Channel, which: str, parameters: Mapping[str, str | int]
    ) -> LoadedDriver:
        """Swap one end's driver in; no disk may use the one that is there."""
        driver = self.driver(end, which)
        now = drivers.load_driver(channel, driver, self.cache, dict(parameters))
        self.loaded[end] = driver, now
        return now

    def load_back(self, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Swap dom0's back end; `parameters` are the module's."""
        return self.load("back", self.dom0, which, parameters)

    def limit(self, end: End, pages: int, which: str = "patched") -> dict[str, str | int]:
        """The parameter that limits the rings of a driver to `pages`, as that driver calls it."""
        return drivers.ring_limit(self.driver(end, which), pages)

    def set_back(self, **parameters: str | int) -> None:
        """Change parameters of the loaded back end; what connects later follows them."""
        for name, value in parameters.items():
            self.dom0.run(
                ["sh", "-c", f'echo "$1" > {BACK_PARAMETERS}/{name}', "sh", str(value)], timeout=20
            )

    def create(
        self,
        *,
        disk: RigLun | None = None,
        ring_pages: int | None = None,
        max_ring_pages: int | None = None,
        front: str | None = "patched",
        back: str = "patched",
        front_parameters: Mapping[str, str | int] | None = None,
        back_parameters: Mapping[str, str | int] | None = None,
    ) -> RigDomu:
        """The domU of the checkpoint, with both drivers loaded, and `disk` connected if given.

        `ring_pages` limits the front end, `max_ring_pages` the back end (both in pages of one
        queue's ring; without, the driver's own default). With `front` None the domU has no
        front end, and a disk stays as the back end offers it, until `RigDomu.load_front`.
        Once for a host: the domU is one.
        Raises NotHeld when the ends do not connect.
        """
        if self._created:
            raise ValueError("this host's domU was given out already: create() is for the first")
        self._created = True
        limits = {} if max_ring_pages is None else self.limit("back", max_ring_pages, back)
        self.load_back(back, **{**limits, **(back_parameters or {})})
        domu = RigDomu(self, self.stack.domain)
        if front is not None:
            limits = {} if ring_pages is None else self.limit("front", ring_pages, front)
            domu.load_front(front, **{**limits, **(front_parameters or {})})
        if disk is not None and front is not None:
            domu.attach(disk)
        elif disk is not None:
            domu.offer(disk)
        return domu
