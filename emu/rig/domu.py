"""The domU of a host, as tests see it: its disks, its ring, its moves."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from emu.channel.channel import Channel
from emu.errors import RigError
from emu.rig import verifying
from emu.rig.lun import RigLun
from emu.rig.verifying import Load, VerifyingIo
from emu.xen import data, migration, save_restore
from emu.xen.domain import Domain
from emu.xen.drivers import LoadedDriver
from emu.xen.queues import Views
from emu.xen.ring import Ring
from emu.xen.save_restore import STOCK_MOVE

if TYPE_CHECKING:
    from emu.rig.host import RigHost

FIRST_DISK = "xvda"
OFFERED_WITHIN = 20.0
"""Seconds until a back end waits for its front end."""
DATA_WITHIN = 120.0


class RigDomu:
    """A running domU. `host` changes when it migrates, `domain` when it is restored, too."""

    def __init__(self, host: RigHost, domain: Domain) -> None:
        self.host = host
        self._domain = domain
        self._disks: dict[str, RigLun] = {}

    @property
    def domain(self) -> Domain:
        """The domain behind it, with the verbs and views of `emu.xen`."""
        return self._domain

    @domain.setter
    def domain(self, domain: Domain) -> None:
        self._domain = domain
        self.host.stack.domain = domain

    @property
    def channel(self) -> Channel:
        """The command channel into the domU."""
        return self._domain.channel

    @property
    def name(self) -> str:
        """Its name for xl."""
        return self._domain.name

    def run(self, script: str, timeout: float = 60.0) -> str:
        """Run a shell script in the domU; its output. Raises CommandFailed."""
        return self.channel.run(script, timeout=timeout).text

    def load_front(self, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Swap the domU's front end; `parameters` are the module's."""
        return self.host.load("front", self.channel, which, parameters)

    # Its disks.

    def attach(self, lun: RigLun, disk: str | None = None) -> Ring:
        """Give it `lun` as `disk` (default: the first free name), and wait for the ring."""
        disk = self.offer(lun, disk)
        return self._domain.wait_connected(disk)

    def offer(self, lun: RigLun, disk: str | None = None) -> str:
        """Give it `lun` as `disk`, which is returned; wait for the back end alone.

        Raises NotHeld when that does not come to wait for a front end, or further.
        """
        disk = disk or self._free_name()
        self._domain.attach(lun.lun, disk)
        self._disks[disk] = lun
        self._domain.wait_state("back", "InitWait", "Connected", disk=disk, timeout=OFFERED_WITHIN)
        return disk

    def wait_connected(self, disk: RigLun | str = FIRST_DISK) -> Ring:
        """Wait until both ends of a disk are connected; the ring they agreed on."""
        return self._domain.wait_connected(self.disk(disk))

    def detach(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Take a disk away; returns when both ends have let go."""
        name = self.disk(disk)
        self._domain.detach(name)
        self._disks.pop(name, None)

    def forget(self, disk: RigLun | str = FIRST_DISK) -> None:
        """Count a disk as gone that was taken away by other means than `detach`."""
        self._disks.pop(self.disk(disk), None)

    def disk(self, of: RigLun | str = FIRST_DISK) -> str:
        """The name in the domU ("xvda") of a LUN's disk; the first, if it has several."""
        if isinstance(of, str):
            return of
        for disk, lun in self._disks.items():
            if lun.name == of.name:
                return disk
        raise RigError(f"domU {self.name} has no disk on LUN {of.name}")

    @property
    def disks(self) -> tuple[str, ...]:
        """The names of its disks, in the order they were attached."""
        return tuple(self._disks)

    def lun(self, disk: RigLun | str = FIRST_DISK) -> RigLun:
        """The LUN behind a disk of its own."""
        name = self.disk(disk)
        if name not in self._disks:
            raise RigError(f"domU {self.name} has no disk {name}")
        return self._disks[name]

    def verifying_io(
        self,
        outstanding: int | None = None,
        disk: RigLun | str = FIRST_DISK,
        *,
        load: Load | None = None,
        may_fail: bool = False,
    ) -> contextlib.AbstractContextManager[VerifyingIo]:
        """Verified I/O while the body runs, then judged: see `emu.rig.verifying`.

        `outstanding` goes before what `load` says of it.
        """
        lun, name = self.lun(disk), self.disk(disk)
        load = load or Load()
        if outstanding is not None:
            load = replace(load, outstanding=outstanding)
        return verifying.verifying_io(self, lun, name, load, may_fail=may_fail)

    def ring(self, disk: RigLun | str = FIRST_DISK) -> Ring:
        """The ring that both ends have negotiated."""
        return self._domain.ring(self.disk(disk))

    def queues(self, disk: RigLun | str = FIRST_DISK) -> Views:
        """What both drivers show of the disk's queues."""
        return self._domain.queues(self.disk(disk))

    def fill(self, disk: RigLun | str = FIRST_DISK, mib: int = 1) -> str:
        """Write random data to the first MiB of a disk, past the page cache; its SHA-256."""
        return data.write(self.channel, self.disk(disk), mib, DATA_WITHIN)

    def sum(self, disk: RigLun | str = FIRST_DISK, mib: int = 1) -> str:
        """SHA-256 of the first MiB of a disk, read past the page cache."""
        return data.read(self.channel, self.disk(disk), mib, DATA_WITHIN)

    def _free_name(self) -> str:
        names = (f"xvd{letter}" for letter in "abcdefghijklmnop")
        return next(name for name in names if name not in self._disks)

    # Its moves.

    def save(self) -> None:
        """Save it into dom0's memory; returns when it is gone."""
        save_restore.save(self.host.stack)

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Save it; the body runs when it stands still and its pages are being written."""
        return save_restore.saving(self.host.stack)

    def restore(self) -> None:
        """Restore what was saved; returns when it answers and all its disks are connected."""
        with self.host.stack.machine.watch.allow(STOCK_MOVE, guest=self.name):
            save_restore.restore(self.host.stack)
            self._domain = self.host.stack.domain
            for disk in self._disks:
                save_restore.reconnected(self._domain, disk)

    def save_and_restore(
        self,
        *,
        max_ring_pages: int | None = None,
        back: str | None = None,
        **back_parameters: str | int,
    ) -> None:
        """Save it, change the back end, restore it.

        `max_ring_pages` becomes the back end's limit in between. With `back` or
        `back_parameters` its driver is loaded anew, else the parameter is changed.
        """
        with self.host.stack.machine.watch.allow(STOCK_MOVE, guest=self.name):
            self.save()
            if back is not None or back_parameters:
                which = back or "patched"
                if max_ring_pages is not None:
                    back_parameters.update(self.host.limit("back", max_ring_pages, which))
                self.host.load_back(which, **back_parameters)
            elif max_ring_pages is not None:
                self.host.set_back(max_ring_pages=max_ring_pages)
            self.restore()

    def migrate(self, to: RigHost | None = None, *, live: bool = True) -> float:
        """Migrate it to another of `two_hosts`, or live inside its own; see `migration.migrate`."""
        return migration.migrate(self, to, live=live)

    def migrating(
        self, to: RigHost | None = None, *, live: bool = True
    ) -> contextlib.AbstractContextManager[migration.Migration]:
        """Migrate it while the body runs; see `migration.migrating`."""
        return migration.migrating(self, to, live=live)
