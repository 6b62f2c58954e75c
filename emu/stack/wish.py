"""What a person, or a test, asks for: resolved and checked once, before anything is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.emulator import choice as emulator
from emu.emulator.accel import Requested
from emu.errors import InputError
from emu.images import xens
from emu.images.kernel_specs import full_name
from emu.images.tree_kernel import TreeWish
from emu.machine.spec import Clock
from emu.xen.config import Dom0Config, DomuConfig, check_options
from emu.xen.disk import FIRST, NamedDisk

LARGE_RING = 16
"""Pages of the largest ring that a stock front end has room for in a domU of 256 MiB."""
DATA_MIB = 64
"""MiB that `emu run` moves where the domU has room for them."""


@dataclass(frozen=True)
class Wish:
    """A stack that was asked for. A kernel is any name that `emu.images.kernel_specs.spec` knows:
    "debian" (its release is 6.1), "debian-7.3", "lab-6.12", "cloud-6.18" for a domU.

    `domu_kernel` is the domU's where it is not dom0's. `tree` is the path of a kernel tree in place
    of `kernel`, `domu_tree` one in place of `domu_kernel`, `config` a file that configures the
    trees. `xen` is a release of `emu.images.xens`, `second_xen` that of the second host of two,
    where it is another; `xen_options` are added to its command line. `qemu` is a name of
    `emulator` or a path (default: $EMU_QEMU, or the host's); `cpu` the model that TCG emulates,
    where it is not the one that QEMU's faults leave. `clock` is wall time by default. A run with
    `record` can be replayed (emu.lab.replay): that means instruction time, and by default a QEMU
    that records.

    Raises InputError for what no machine could run.
    """

    kernel: str = "debian"
    domu_kernel: str | None = None
    tree: str | None = None
    domu_tree: str | None = None
    config: str | None = None
    xen: str = xens.DEFAULT
    second_xen: str | None = None
    domu: DomuConfig = field(default_factory=DomuConfig)
    dom0: Dom0Config = field(default_factory=Dom0Config)
    xen_options: str = ""
    accel: Requested = "auto"
    clock: Clock | None = None
    qemu: str = ""
    cpu: str = ""
    cold: bool = False
    record: bool = False
    lun_mib: int = 256
    sector: int = 512

    def __post_init__(self) -> None:
        if self.domu_tree is not None and self.domu_kernel is not None:
            raise InputError("the domU's kernel is a tree's or a named one, not both")
        if self.config is not None and self.tree is self.domu_tree is None:
            raise InputError(
                "a configuration is for a kernel of a tree",
                hint="--tree or --domu-tree",
            )
        # A test or a recording may have another current directory when it resolves them.
        for name in ("tree", "domu_tree", "config"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(Path(given).expanduser().absolute()))
        for release in filter(None, (self.xen, self.second_xen)):
            xens.find(release)
        if self.second_xen == self.xen:
            object.__setattr__(self, "second_xen", None)
        check_options(self.xen_options)
        if self.lun_mib < 1:
            raise InputError(f"a LUN of {self.lun_mib} MiB is no disk")
        # Resolved here, so that nobody below has to know what a recording needs.
        object.__setattr__(self, "clock", self.clock or ("icount" if self.record else "wall"))
        object.__setattr__(self, "qemu", self.qemu or emulator.default(recording=self.record))
        if self.clock == "icount" and self.accel == "kvm":
            raise InputError("instruction time needs TCG: --clock icount and --accel kvm exclude")
        if self.record and self.clock != "icount":
            raise InputError("a recording counts instructions", hint="--clock icount")
        if self.record and self.qemu == emulator.SYSTEM:
            raise InputError(
                "QEMU as it comes records nothing of what reaches the guests, see "
                "qemu-patches/REPLAY.md",
                hint=f"--qemu {emulator.RECORDING}",
            )

    @staticmethod
    def of_fields(fields: Mapping[str, Any]) -> Wish:
        """A wish from what `dataclasses.asdict` made of one.

        Raises InputError as its constructor, KeyError and TypeError for fields that are not its.
        """
        # A recording may be older than the choice of dom0's.
        domu, dom0 = DomuConfig(**fields["domu"]), Dom0Config(**fields.get("dom0", {}))
        return Wish(**{**fields, "domu": domu, "dom0": dom0})

    @property
    def guest_clock(self) -> Clock:
        """The clock, resolved."""
        assert self.clock is not None
        return self.clock

    @property
    def dom0_choice(self) -> str | TreeWish:
        """dom0's kernel, as `get_kernel` takes it: its full name in kernels.toml, or a tree."""
        return full_name(self.kernel) if self.tree is None else self._of_tree(self.tree)

    @property
    def domu_choice(self) -> str | TreeWish:
        """The domU's kernel likewise."""
        if self.domu_tree is not None:
            return self._of_tree(self.domu_tree)
        return self.dom0_choice if self.domu_kernel is None else full_name(self.domu_kernel)

    @property
    def kernel_name(self) -> str:
        """The full name of dom0's kernel, or the path of its tree."""
        return str(self.dom0_choice)

    @property
    def domu_kernel_name(self) -> str:
        """The full name of the domU's, or the path of its tree."""
        return str(self.domu_choice)

    def _of_tree(self, tree: str) -> TreeWish:
        return TreeWish(Path(tree), None if self.config is None else Path(self.config))


@dataclass(frozen=True)
class RunWish:
    """What `emu run` was asked for; `data_mib` MiB go through the ring both ways.

    Without a number it is 64 MiB, or as many as the domU and the LUN have room for.
    """

    stack: Wish
    ring_pages: int = 16
    front: str = "patched"
    back: str = "patched"
    data_mib: int | None = None
    disk: NamedDisk = FIRST

    def __post_init__(self) -> None:
        check_ring_pages(self.ring_pages)
        if self.disk.options.mode != "w":
            raise InputError(f"the domU writes to {self.disk.name}: it can't be read-only")
        # The domU holds the data in a tmpfs, half its memory, while it writes it.
        most = min(self.stack.lun_mib, self.stack.domu.memory * 3 // 8)
        if self.data_mib is not None and not 1 <= self.data_mib <= most:
            raise InputError(
                f"{self.data_mib} MiB of data does not fit: the LUN has {self.stack.lun_mib} MiB, "
                f"the domU {self.stack.domu.memory} MiB of memory",
                hint=f"--data 1 to {most}",
            )
        object.__setattr__(self, "data_mib", self.data_mib or min(DATA_MIB, most))

    @property
    def moved_mib(self) -> int:
        """MiB that go through the ring each way, resolved."""
        assert self.data_mib is not None
        return self.data_mib


def check_ring_pages(pages: int) -> None:
    """Raise InputError for a number of pages that no ring has."""
    if pages < 1 or pages & (pages - 1):
        below = 1 << (pages.bit_length() - 1) if pages > 0 else 1
        raise InputError(
            f"a ring has 1, 2, 4, … pages, not {pages}",
            hint=f"--ring-pages {below}" + (f" or {2 * below}" if pages > 0 else ""),
        )


def memory_for(ring_pages: int) -> int:
    """MiB of a domU in which a stock front end can have a ring of that many pages.

    It allocates 33 pages for each of a ring's 32 requests a page before it connects; with
    64 pages that is 264 MiB (run on 6.1: 256 MiB never finish, 640 MiB do).
    """
    return 256 if ring_pages <= LARGE_RING else 640
