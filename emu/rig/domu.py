"""A domU as tests see it: its drivers, its disks, its moves, its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from emu.deadline import Deadline, poll
from emu.errors import NotHeld
from emu.images.modules import Driver, End
from emu.rig import verifying
from emu.rig.disks import FIRST_DISK
from emu.rig.filesystems import DomuFileSystems
from emu.rig.lun import RigLun
from emu.rig.serving import ServingDomu
from emu.rig.verifying import Load, VerifyingIo
from emu.xen import granted, migration, save_restore, vcpus
from emu.xen.drivers import LoadedDriver
from emu.xen.save_restore import STOCK_WARNING

if TYPE_CHECKING:
    from emu.rig.host import RigHost

ENDED_WITHIN = 20.0
"""Seconds until a domain that has shut down is gone."""


class RigDomu(DomuFileSystems, ServingDomu):
    """A running domU. `host` changes when it migrates, `domain` when it is restored, too."""

    def __init__(self, host: RigHost, name: str, kind: str, log_lines: int = 0) -> None:
        super().__init__(host, name, log_lines)
        self.kind = kind
        """"pv" or "pvh"."""
        self.resumes = 0
        """How often it was resumed as another domain: restored, or migrated."""
        self.front: tuple[Driver, LoadedDriver] | None = None
        """The front end that was loaded last; None: what the checkpoint has."""

    def wait_booted(self, timeout: float = 120.0) -> None:
        """Wait until a domU that was started answers; `timeout` in seconds before scaling.

        Raises GuestError when it does not.
        """
        self.domain.open_channel(timeout)

    def run(self, script: str, timeout: float = 60.0) -> str:
        """Run a shell script in the domU; its output. Raises CommandFailed."""
        return self.channel.run(script, timeout=timeout).text

    # Its drivers.

    def load_front(self, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Swap the domU's front end; `parameters` are the module's."""
        self.front = self.host.swap("front", self.channel, which, parameters)
        return self.front[1]

    def load(self, end: End, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Swap an end's driver: the domU's front end, or the back end of its dom0."""
        load = self.load_front if end == "front" else self.host.load_back
        return load(which, **parameters)

    # Verified I/O and grants.

    def verifying_io(
        self,
        outstanding: int | None = None,
        disk: RigLun | str = FIRST_DISK,
        *,
        load: Load | None = None,
        may_fail: bool = False,
    ) -> contextlib.AbstractContextManager[VerifyingIo]:
        """Verified I/O while the body runs, then judged: see `emu.rig.verifying`.

        `outstanding` goes before that of `load`.
        """
        lun, name = self.lun(disk), self.block(disk)
        load = load or Load()
        if outstanding is not None:
            load = replace(load, outstanding=outstanding)
        start = self.start_of(disk)
        return verifying.verifying_io(self, lun, name, load, start=start, may_fail=may_fail)

    def data_refs(self) -> list[int]:
        """Its grant references that are for data: neither a ring's nor a console's."""
        domid = self.domain.domid
        table = granted.read_table(self.host.dom0, domid)
        keys = self.host.xen.xenstore(f"/local/domain/{domid}/device").values
        named = {int(value) for key, value in keys.items() if "ring-ref" in key}
        refs = table.refs if table else frozenset()
        return sorted(ref for ref in refs - named if ref >= granted.RESERVED)

    def mapped_refs(self) -> frozenset[int]:
        """Its grant references that another domain maps right now."""
        return self.host.xen.grants().of(self.domain.domid).refs

    # Its CPUs.

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Pause it while the body runs (xl pause): dom0 goes on with the requests on its rings.

        It does not answer meanwhile: no verb that runs something in it ends before its time-out.
        A disk is not detached (NotHeld, after ten seconds): its back end goes to Closing, both
        ends close when the domU runs again, and `force_detach` removes the keys.
        """
        return self.domain.paused()

    def set_vcpus(self, number: int) -> None:
        """Give it `number` vCPUs; returns when its kernel uses just as many.

        No more than it was made for (`RigHost.create`: `max_vcpus`, or `vcpus`). Raises InputError
        for a number that it can't have, NotHeld when its kernel does not follow.
        """
        vcpus.set_vcpus(self.domain, number)

    # Its moves.

    def save(self) -> None:
        """Save it into dom0's memory; returns when it is gone.

        Raises InputError for a domU that serves a disk, or is served one (`serve`).
        """
        self.check_movable()
        save_restore.save(self.domain)

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Save it; the body runs when it is suspended and its pages are being written."""
        self.check_movable()
        return save_restore.saving(self.domain)

    def restore(self) -> None:
        """Restore what was saved; returns when it answers and all its disks are connected."""
        with self.host.stack.machine.watch.allow(STOCK_WARNING, guest=self.name):
            domain = save_restore.restore(self.host.xen, self.name)
            self.resumes += 1
            for disk in self.disks:
                save_restore.reconnected(domain, disk)

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
        with self.host.stack.machine.watch.allow(STOCK_WARNING, guest=self.name):
            self.save()
            self.host.change_back(back, max_ring_pages, back_parameters)
            self.restore()

    def migrate(self, to: RigHost | None = None, *, live: bool = True) -> float:
        """Migrate it to another of `two_hosts`, or live inside its own; see `migrating`.

        Seconds on this machine's clock until it answered at its target with its disks connected.
        """
        began = time.monotonic()
        with self.migrating(to, live=live):
            pass
        return time.monotonic() - began

    @contextlib.contextmanager
    def migrating(
        self, to: RigHost | None = None, *, live: bool = True
    ) -> Iterator[migration.Migration]:
        """Migrate it while the body runs.

        After the context it runs at its target, with all its disks connected. Raises
        MigrationFailed, with both sides' output, when it did not get there: then it runs at its
        source. InputError for what Xen can't do here.
        """
        self.check_movable()
        with migration.migrating(
            self.domain, to.xen if to else None, kind=self.kind, live=live, disks=self.disks
        ) as move:
            yield move
        self.resumes += 1
        if to is not None and to is not self.host:
            self.host.domus.remove(self)
            to.domus.append(self)
            self.host = to

    # Its end.

    def power_off(self) -> None:
        """Let its kernel shut down; returns when the domain is gone."""
        # A PVH guest has no ACPI to switch itself off with: Xen takes its reset for an end.
        letter = "o" if self.kind == "pv" else "b"
        self.domain.leave()
        self.channel.spawn(f"echo {letter} > /proc/sysrq-trigger")
        self.wait_ended()

    def destroy(self) -> None:
        """End it at once; returns when xl has."""
        self.domain.destroy()
        self.ended = True

    def wait_ended(self) -> None:
        """Wait until no domain of its name runs. Raises NotHeld when one still does."""
        until = Deadline("the domain to end", ENDED_WITHIN)
        if not poll(lambda: self.name not in [i.name for i in self.host.xen.list()], until):
            raise NotHeld(f"domain {self.name} still runs after {until.spent:.0f} s")
        self.domain.close()
        self.ended = True
