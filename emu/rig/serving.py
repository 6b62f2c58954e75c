"""A domU that serves its disks to other domUs of its host: a driver domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emu.errors import InputError, NotHeld
from emu.images.modules import Driver
from emu.rig.disks import DomuDisks, GivenDisk
from emu.rig.lun import RigLun
from emu.xen import served
from emu.xen.disk import DiskOptions, Mode
from emu.xen.drivers import LoadedDriver
from emu.xen.ring import Ring

if TYPE_CHECKING:
    from emu.rig.host import RigHost


class ServingDomu(DomuDisks):
    """A domU with a back end of its own."""

    def __init__(self, host: RigHost, name: str, log_lines: int = 0) -> None:
        super().__init__(host, name, log_lines)
        self.back: tuple[Driver, LoadedDriver] | None = None
        """The back end that was loaded into it last; None: it has none."""

    def load_back(self, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Load a back end into this domU, to serve its disks; `parameters` are the module's.

        Memory of the domUs that it serves is mapped into its own: 128 MiB do for one disk.
        """
        kernel = self.host.stack.artifacts.domu_kernel
        self.back = self.host.swap("back", self.channel, which, parameters, kernel)
        return self.back[1]

    def serve(
        self,
        disk: RigLun | str,
        to: ServingDomu,
        name: str | None = None,
        *,
        mode: Mode = "w",
        discard: bool | None = None,
    ) -> Ring:
        """Give the domU `to` a disk of this one, as `name` (default: its first free one); waits
        for the ring. The back end is loaded unless it is there.

        All verbs of `to` work on that disk but `save` and `migrate`; its LUN is that of `disk`.
        When this domU is destroyed the keys of the back end go, and no front end does anything of
        that: it stays Connected, and a request waits. When the disk is taken away then
        (`force_detach`) such a request ends with EIO in one of the series; in a stock one it never
        ends, and del_gendisk() waits for it in xenbus' thread, which all other devices need.
        Raises InputError for a `to` that it can't serve, NotHeld when the ends do not connect.
        """
        if to is self or to.host is not self.host:
            raise InputError(f"domU {self.name} serves other domUs of its host, not {to.name}")
        if self.back is None:
            self.load_back()
        name = name or to.free_name()
        lun, device = self.lun(disk), f"/dev/{self.block(disk)}"
        to._disks[name] = GivenDisk(lun, server=self)
        try:
            options = DiskOptions(mode, discard=discard)
            served.attach(to.domain, self.domain, device, name, options)
            return to.domain.wait_connected(name)
        except NotHeld:
            to._give_up(name)
            raise

    def check_movable(self) -> None:
        """Raise InputError if it serves a disk or is served one: xl can't restore that without its
        own daemon (`xl devd`) in the domU that serves. Or if it has a disk that it booted with.

        The interrupt of such a disk does not survive a resume, as the domU has a second console
        (its command channel): xencons_resume() puts the number that the console's event channel had
        before, and when the disk was there first it is the disk's by now (Linux 6.1 to 7.3,
        drivers/tty/hvc/hvc_xen.c; seen on 6.1).
        """
        if booted := sorted(name for name, given in self._disks.items() if given.at_boot):
            raise InputError(
                f"domU {self.name} can't be moved with {', '.join(booted)}, which it booted with",
                hint="detach and attach it: it is behind the domU's second console then",
            )
        if any(given.server for given in self._disks.values()):
            raise InputError(f"domU {self.name} can't be moved: another domU serves its disks")
        others = (other for other in self.host.domus if not other.ended)
        if any(given.server is self for other in others for given in other._disks.values()):
            raise InputError(f"domU {self.name} can't be moved: it serves disks to another")
