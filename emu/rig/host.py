"""A host of the rig: loads back ends, creates domUs and LUNs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from emu.channel.channel import Channel
from emu.errors import InputError
from emu.images.build_warnings import BuildWarning
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.kernels import Kernel
from emu.images.modules import Driver, End
from emu.rig.domu import RigDomu
from emu.rig.kernel_log import KernelLog
from emu.rig.lun import RigLun
from emu.stack import drivers
from emu.stack.stack import Stack
from emu.xen import lun as luns
from emu.xen.config import DomuConfig
from emu.xen.disk import DiskOptions, Mode
from emu.xen.drivers import LoadedDriver
from emu.xen.host import Host
from emu.xen.vdev import disk_names

BACK_PARAMETERS = "/sys/module/xen_blkback/parameters"


class RigHost:
    """One emulated host with what its stack was started with: a LUN and an idle domU.

    `domus` are all domUs that run on it or have ended there, the idle one first.
    """

    def __init__(self, stack: Stack, context: BuildContext) -> None:
        self.stack = stack
        self.context = context
        self.lun = RigLun(stack.lun, stack.host.dom0)
        self.log = KernelLog(lambda: self.dom0, stack.kernel_lines.get("dom0", 0))
        """What dom0's kernel logs, from the checkpoint on."""
        self.back: tuple[Driver, LoadedDriver] | None = None
        """The back end that was loaded last; None: what the checkpoint has."""
        self.warnings: dict[BuildWarning, None] = {}
        """What the compiler said of the drivers that were to be loaded, in order."""
        self.domus: list[RigDomu] = []
        self._created: list[RigDomu] = []
        self._lun_numbers = itertools.count(1)
        self._idle: RigDomu | None = None
        if stack.domu is not None:
            config = stack.artifacts.wish.domu
            lines = stack.kernel_lines.get("domu", 0)
            self._idle = RigDomu(self, config.name, config.kind, lines)
            self.domus.append(self._idle)

    @property
    def cache(self) -> Cache:
        """The cache that its modules and images are in."""
        return self.context.cache

    @property
    def xen(self) -> Host:
        """Xen and dom0: verbs and views."""
        return self.stack.host

    @property
    def dom0(self) -> Channel:
        """The command channel into dom0."""
        return self.stack.host.dom0

    @property
    def loaded(self) -> dict[End, tuple[Driver, LoadedDriver]]:
        """The drivers that tests have loaded, by end: the front end is the first domU's."""
        fronts = (domu.front for domu in self._created if domu.front)
        both: dict[End, tuple[Driver, LoadedDriver] | None] = {
            "back": self.back,
            "front": next(fronts, None),
        }
        return {end: driver for end, driver in both.items() if driver}

    # Drivers.

    def driver(self, end: End, which: str = "patched") -> Driver:
        """One end's driver for this host's kernels: "stock", "patched", or a path."""
        return drivers.driver_for(end, which, self.stack.artifacts, self.context)

    def swap(
        self,
        end: End,
        channel: Channel,
        which: str,
        parameters: Mapping[str, str | int],
        kernel: Kernel | None = None,
    ) -> tuple[Driver, LoadedDriver]:
        """Swap one end's driver in a guest; no disk may use the one that is there.

        `kernel`: the guest's, where that is not the one that the end runs on by default.
        """
        if kernel is None:
            driver = self.driver(end, which)
        else:
            driver = drivers.checked_driver(end, which, kernel, self.context)
        self.warnings.update(dict.fromkeys(driver.warnings))
        return driver, drivers.load_driver(channel, driver, self.cache, dict(parameters))

    def load_back(self, which: str = "patched", **parameters: str | int) -> LoadedDriver:
        """Swap dom0's back end; `parameters` are the module's."""
        self.back = self.swap("back", self.dom0, which, parameters)
        return self.back[1]

    def limit(self, end: End, pages: int, which: str = "patched") -> dict[str, str | int]:
        """The parameter that limits the rings of a driver to `pages`, as that driver calls it."""
        return drivers.ring_limit(self.driver(end, which), pages)

    def set_back(self, **parameters: str | int) -> None:
        """Change parameters of the loaded back end; they hold for later connections."""
        for name, value in parameters.items():
            self.dom0.run(
                ["sh", "-c", f'echo "$1" > {BACK_PARAMETERS}/{name}', "sh", str(value)], timeout=20
            )

    def back_parameter(self, name: str) -> str:
        """A parameter of the loaded back end, as it reads."""
        return self.dom0.run(["cat", f"{BACK_PARAMETERS}/{name}"], timeout=20).text.strip()

    def change_back(
        self,
        which: str | None,
        max_ring_pages: int | None,
        parameters: Mapping[str, str | int],
    ) -> None:
        """Load the back end anew where `which` or `parameters` are given, else change its limit
        alone. With nothing given it stays as it is."""
        if which is None and not parameters:
            if max_ring_pages is not None and self.back is not None:
                self.set_back(**drivers.ring_limit(self.back[0], max_ring_pages))
            elif max_ring_pages is not None:
                self.set_back(max_ring_pages=max_ring_pages)
            return
        which = which or "patched"
        limits = {} if max_ring_pages is None else self.limit("back", max_ring_pages, which)
        self.load_back(which, **{**limits, **parameters})

    # LUNs and domUs.

    def create_lun(
        self,
        *,
        size_mib: int = 16,
        sector: int = 512,
        physical: int | None = None,
        thin: bool = True,
        write_protected: bool = False,
        digests: bool = False,
        name: str | None = None,
    ) -> RigLun:
        """Make one more LUN of `size_mib` MiB with sectors of 512 or 4096 bytes, and log in.

        Its file is sparse, so that it may be larger than dom0's disk: up to 16 TiB less 1 MiB.
        `physical`: the bytes of its physical sectors, where that is not `sector`. `thin` False: all
        its blocks are allocated, and it can't be discarded. `write_protected`: it can be read
        alone. `digests`: iSCSI with CRC-32C digests of headers and data. `name`: default "lun1" and
        so on. Raises InputError as `emu.xen.lun.create`.
        """
        if name is None:
            name = f"lun{next(self._lun_numbers)}"
        made = self.xen.create_lun(
            name, size_mib * luns.MIB, sector,
            physical=physical, thin=thin, write_protected=write_protected, digests=digests,
        )  # fmt: skip
        return RigLun(made, self.dom0)

    def create(
        self,
        *,
        disk: RigLun | Sequence[RigLun] = (),
        mode: Mode = "w",
        at_boot: bool = False,
        name: str | None = None,
        memory: int | None = None,
        vcpus: int | None = None,
        max_vcpus: int | None = None,
        kind: str | None = None,
        ring_pages: int | None = None,
        max_ring_pages: int | None = None,
        front: str | None = "patched",
        back: str | None = None,
        front_parameters: Mapping[str, str | int] | None = None,
        back_parameters: Mapping[str, str | int] | None = None,
    ) -> RigDomu:
        """A domU with its front end loaded, and every `disk` connected.

        The first call gives the idle domU of the checkpoint, unless another `memory` (MiB),
        `vcpus`, `kind` or `name` is asked for, or `max_vcpus` (see `RigDomu.set_vcpus`); any
        other call creates one more, like the idle one but for these, named u2, u3, … by default.

        `ring_pages` limits the front end, `max_ring_pages` the back end (both in pages of one
        queue's ring; without, the driver's own default). With `front` None the domU has no
        front end, and disks stay as the back end offers them, until `RigDomu.load_front`.
        The back end is loaded by the first call; later ones leave it as it is, but for a changed
        limit, unless they name `back` or `back_parameters`: then no disk may use it.
        `mode` "r": the domU may not write to its disks. `at_boot`: they are in its configuration,
        and there before its kernel; such a domU is always one more, and is not saved with them
        (`RigDomu.check_movable`).
        Raises InputError for a name that another domU has, or memory that the host has not,
        NotHeld when the ends do not connect, or xl refuses the domU.
        """
        wanted = _several(disk)
        given = list(zip(disk_names(), wanted, strict=False)) if at_boot else []
        words = [DiskOptions(mode).words(lun.device, name) for name, lun in given]
        asked = {"name": name, "memory": memory, "vcpus": vcpus, "max_vcpus": max_vcpus}
        config = self._config({**asked, "kind": kind, "disks": tuple(words) or None})
        if back is None and self.back is None:
            back = "patched"
        self.change_back(back, max_ring_pages, back_parameters or {})
        domu = self._domu(config)
        domu.booted_with(given)
        self._created.append(domu)
        if front is not None:
            limits = {} if ring_pages is None else self.limit("front", ring_pages, front)
            domu.load_front(front, **{**limits, **(front_parameters or {})})
        for booted, _ in given if front is not None else ():
            domu.wait_connected(booted)
        for lun in () if at_boot else wanted:
            if front is not None:
                domu.attach(lun, mode=mode)
            else:
                domu.offer(lun, mode=mode)
        return domu

    def start(
        self,
        *,
        disk: RigLun | Sequence[RigLun] = (),
        name: str | None = None,
        memory: int | None = None,
        vcpus: int | None = None,
        kind: str | None = None,
    ) -> RigDomu:
        """One more domU, whose kernel has only begun to boot: its disks are offered, and nothing
        runs in it yet. `RigDomu.wait_booted` waits until it answers.

        The arguments and errors are those of `create`, which makes one that has booted.
        """
        asked = {"name": name, "memory": memory, "vcpus": vcpus, "kind": kind}
        config = self._config({**asked, "name": name or self._free_name()})
        self.xen.start(config)
        domu = self._new(config)
        for lun in _several(disk):
            domu.offer(lun)
        return domu

    def _config(self, asked: Mapping[str, object]) -> DomuConfig:
        """The configuration that is asked for; that of the idle domU, where it will do.

        Raises InputError.
        """
        like = self.stack.artifacts.wish.domu
        given = {key: value for key, value in asked.items() if value is not None}
        if self._idle is not None and replace(like, **given) == like:  # type: ignore[arg-type]
            return like
        given.setdefault("name", self._free_name())
        config: DomuConfig = replace(like, **given)  # type: ignore[arg-type]
        if config.name in self._taken_names:
            raise InputError(f"this host has a domU {config.name} already: give it another name")
        free = int(self.xen.info()["free_memory"])
        if config.memory > free:
            raise InputError(
                f"a domU of {config.memory} MiB does not fit: the host has {free} MiB to give",
                hint="end another domU, or give it less memory",
            )
        return config

    def _domu(self, config: DomuConfig) -> RigDomu:
        if self._idle is not None and config == self.stack.artifacts.wish.domu:
            idle, self._idle = self._idle, None
            return idle
        self.xen.create(config)
        return self._new(config)

    def _new(self, config: DomuConfig) -> RigDomu:
        domu = RigDomu(self, config.name, config.kind)
        self.domus.append(domu)
        return domu

    @property
    def _taken_names(self) -> set[str]:
        return {domu.name for domu in (*self.domus, *self._created) if not domu.ended}

    def _free_name(self) -> str:
        taken = self._taken_names
        return next(name for n in itertools.count(1) if (name := f"u{n}") not in taken)


def _several(disk: RigLun | Sequence[RigLun]) -> Sequence[RigLun]:
    return [disk] if isinstance(disk, RigLun) else disk
