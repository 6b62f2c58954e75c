"""The whole stack, running: from a wish to a host with an idle domU.

Everything a guest boots from is found or made first; then the machine starts from a
checkpoint, which is made once for each set of artifacts, or cold.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from emu.channel.channel import Channel
from emu.emulator import accel, faults
from emu.emulator import choice as emulator
from emu.emulator.accel import AccelChoice
from emu.errors import InputError, RigError
from emu.images import xens
from emu.images.context import BuildContext
from emu.images.guests import GuestImages, get_guests
from emu.images.kernel_specs import require_dom0
from emu.images.kernel_specs import spec as kernel_spec
from emu.images.kernels import Kernel, check_known, get_kernel
from emu.images.manifest import JSON
from emu.images.packages import Package
from emu.images.replaced import settled
from emu.images.xens import Xen
from emu.machine import checkpoint
from emu.machine.hostmemory import host_memory
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import BASE_CMDLINE, Disk, MachineSpec, xen_cmdline
from emu.progress import Progress
from emu.stack import recording
from emu.stack.wish import Wish
from emu.xen import granted
from emu.xen import lun as luns
from emu.xen.domain import Domain
from emu.xen.host import AGENT_PORT, Host
from emu.xen.lun import Lun

T = TypeVar("T")

_BESIDE_GUESTS = 256
"""MiB for Xen itself and for a domU's page tables (measured: 60 MiB with one PVH domU)."""
_STEP = 256
_RECIPE = 3
"""Raised when what a checkpoint holds changes without one of its artifacts changing."""
BOOT_TIMEOUT = 120.0


@dataclass(frozen=True)
class Artifacts:
    """What a wish is resolved to on this machine."""

    wish: Wish
    kernel: Kernel
    domu_kernel: Kernel
    guests: GuestImages
    accel: AccelChoice
    spec: MachineSpec
    packages: tuple[Package, ...] = ()
    """Those that kernels and guests are made of."""
    second: Artifacts | None = None
    """What the second host of two is made of, where that is something else."""

    @property
    def xen(self) -> Xen:
        """The Xen that the host runs, and its dom0."""
        return xens.find(self.wish.xen)

    def checkpoint_key(self) -> dict[str, JSON]:
        """Everything a checkpoint depends on."""
        return {
            **checkpoint.checkpoint_inputs(self.spec),
            "kernel": self.kernel.root.name,
            "guests": self.guests.root.name,
            "domu": self.wish.domu.render(self.xen),
            "lun": [self.wish.lun_mib, self.wish.sector],
            "recipe": _RECIPE,
        }


@dataclass(eq=False)
class Stack:
    """A running host with one LUN logged in and one idle domU."""

    artifacts: Artifacts
    machine: Machine
    host: Host
    lun: Lun
    origin: str
    """"checkpoint" or "cold"."""
    start_s: float
    """Seconds on the host's clock from QEMU's start until the domU answered."""
    dom0_s: float
    """The same until dom0 answered (cold: until all its services were up)."""
    kernel_lines: Mapping[str, int] = field(default_factory=dict)
    """Lines of each guest's kernel log in the checkpoint ("dom0", "domu"); none on a cold start."""

    @property
    def domu(self) -> Domain | None:
        """The domU of the wish, where it runs on this host: it may have migrated away."""
        return self.host.domains.get(self.artifacts.wish.domu.name)

    @property
    def domain(self) -> Domain:
        """The domU of the wish. Raises RigError where it does not run."""
        return self.host.domain(self.artifacts.wish.domu.name)


@settled
def prepare(wish: Wish, context: BuildContext) -> Artifacts:
    """Find or make everything the machine boots from.

    Raises InputError for what can't be had: a tool, a package, a kernel, KVM on request.
    """
    check_kernels(wish)  # now, not after a QEMU was built
    need, most = _memory_needed(wish), host_memory().total // 2**20
    if need > most:
        raise InputError(
            f"a domU of {wish.domu.memory} MiB takes {need} MiB with dom0 and Xen: {most} are here"
        )
    qemu = emulator.program(wish.qemu, context)
    with context.recording() as packages:
        kernel, domu_kernel = kernels_of(wish, context)
        guests = get_guests(xens.find(wish.xen), kernel, context, domu_kernel=domu_kernel)
    if wish.clock == "icount":
        chosen = AccelChoice("tcg", "instruction time needs it")
    else:
        chosen = accel.choose(wish.accel, qemu, guests.xen, context)
    cpu = ""
    if chosen.name == "tcg":
        cpu = cpu_for(wish, qemu, faults.find(qemu, context))
    spec = replace(machine_spec(wish, kernel, guests, chosen), qemu=qemu, cpu=cpu)
    second = None
    if wish.second_xen is not None:
        second = prepare(replace(wish, xen=wish.second_xen, second_xen=None), context)
    used = dict.fromkeys((*packages, *(second.packages if second else ())))
    return Artifacts(wish, kernel, domu_kernel, guests, chosen, spec, tuple(used), second)


def kernels_of(wish: Wish, context: BuildContext) -> tuple[Kernel, Kernel]:
    """dom0's kernel and the domU's, found or made. Raises InputError as `get_kernel`."""
    kernel = get_kernel(wish.dom0_choice, context)
    if wish.domu_choice == wish.dom0_choice:
        return kernel, kernel
    return kernel, get_kernel(wish.domu_choice, context)


def check_kernels(wish: Wish) -> None:
    """Raise InputError for a name that no kernel has, a tree that is none, or a kernel that can't
    be dom0's.
    """
    for choice in (wish.dom0_choice, wish.domu_choice):
        check_known(choice)
    if isinstance(wish.dom0_choice, str):
        require_dom0(kernel_spec(wish.dom0_choice))


def _memory_needed(wish: Wish) -> int:
    """MiB for dom0, the domU and Xen."""
    return wish.dom0.memory + wish.domu.memory + _BESIDE_GUESTS


def cpu_for(wish: Wish, qemu: str, found: tuple[faults.Fault, ...]) -> str:
    """The CPU model for a wish on a QEMU with these faults. Raises InputError if none will do."""
    for fault in found:
        if fault.no_pvh and wish.domu.kind == "pvh":
            raise InputError(
                f"{qemu} is none for a PVH domU: {fault.what}",
                hint="a QEMU of ours is, see qemu-patches/README.md",
            )
    return wish.cpu or faults.cpu_model(found)


def machine_spec(
    wish: Wish, kernel: Kernel, guests: GuestImages, chosen: AccelChoice
) -> MachineSpec:
    """The PC for a wish, QEMU and CPU left open: RAM for dom0, the domU and Xen, rounded up."""
    need = _memory_needed(wish)
    return MachineSpec(
        xen=guests.xen,
        dom0_kernel=kernel.vmlinux,
        initrd=guests.initrd,
        xen_cmdline=xen_cmdline(wish.dom0.memory, wish.dom0.vcpus, wish.xen_options),
        dom0_cmdline=f"{BASE_CMDLINE} {wish.dom0.options}".rstrip(),
        disks=(Disk(guests.dom0, readonly=True), Disk(guests.scratch, format="qcow2")),
        ports=(AGENT_PORT,),
        accel=chosen.name,
        clock=wish.guest_clock,
        memory_mib=max(2048, (need + _STEP - 1) // _STEP * _STEP),
    )


@contextlib.contextmanager
def running(artifacts: Artifacts, context: BuildContext) -> Iterator[Stack]:
    """The stack, for the life of the context. Only its logs are left afterwards."""
    with contextlib.ExitStack() as opened:
        if artifacts.wish.cold:
            rundir = opened.enter_context(RunDir.create())
            with context.progress.stage("booting Xen, dom0 and the domU"):
                stack = opened.enter_context(
                    _cold(artifacts, rundir, context.progress, savable=False)
                )
        else:
            stack = opened.enter_context(
                from_checkpoint(
                    artifacts.checkpoint_key(),
                    lambda into: _save(artifacts, into, context.progress),
                    lambda made, opened: _load(artifacts, made, opened, context.progress),
                    context,
                )
            )
        yield stack


@contextlib.contextmanager
def _cold(
    artifacts: Artifacts, rundir: RunDir, progress: Progress, *, savable: bool
) -> Iterator[Stack]:
    wish = artifacts.wish
    began = time.monotonic()
    spec = artifacts.spec if savable else _recorded(artifacts, rundir, None)
    with (
        Machine.start(spec, rundir, savable=savable) as machine,
        contextlib.closing(Host(machine, artifacts.xen)) as host,
        recording.ended(machine, progress),
    ):
        progress.tick("waiting for dom0")
        host.wait_ready(BOOT_TIMEOUT)
        dom0_s = time.monotonic() - began
        progress.tick("exporting the LUN")
        lun = host.create_lun("lun0", wish.lun_mib * luns.MIB, wish.sector)
        progress.tick("creating the domU")
        host.create(wish.domu)
        start_s = time.monotonic() - began
        yield Stack(artifacts, machine, host, lun, "cold", start_s, dom0_s)


@contextlib.contextmanager
def from_checkpoint(
    key: dict[str, JSON],
    save: Callable[[Path], None],
    load: Callable[[Path, contextlib.ExitStack], T],
    context: BuildContext,
) -> Iterator[T]:
    """What `load` makes of the checkpoint `key`, for the life of the context.

    `save` writes it into a directory if the cache has none. `load` puts what has to be ended
    on its stack; a checkpoint that it finds broken is made again, once.
    """
    for attempt in ("first", "second"):
        made = context.entry("checkpoint", key, save)
        with contextlib.ExitStack() as opened:
            try:
                loaded = load(made, opened)
            except checkpoint.CheckpointBroken as broken:
                if attempt == "second":
                    raise
                context.progress.note(f"{broken.message}; making it again")
                context.cache.discard("checkpoint", key, context.progress)
                continue
            yield loaded
        return


def _load(
    artifacts: Artifacts, made: Path, opened: contextlib.ExitStack, progress: Progress
) -> Stack:
    rundir = opened.enter_context(RunDir.create())
    began = time.monotonic()
    spec = _recorded(artifacts, rundir, made)
    progress.tick("loading the checkpoint")
    machine = checkpoint.load(spec, made / "machine", rundir)
    opened.enter_context(machine)
    host = opened.enter_context(contextlib.closing(Host(machine, artifacts.xen)))
    opened.enter_context(recording.ended(machine, progress))
    saved = json.loads((made / "stack.json").read_text())
    progress.tick("waiting for dom0")
    host.wait_agent(30.0)
    dom0_s = time.monotonic() - began
    domain = host.adopt(**saved["domain"])
    progress.tick("waiting for the domU")
    domain.open_channel(30.0)
    lun = Lun(**saved["lun"])
    start_s = time.monotonic() - began
    lines = saved["kernel_lines"]
    return Stack(artifacts, machine, host, lun, "checkpoint", start_s, dom0_s, lines)


def _recorded(artifacts: Artifacts, rundir: RunDir, made: Path | None) -> MachineSpec:
    """The spec of the machine, recorded into `rundir` if the wish asks for it."""
    if not artifacts.wish.record:
        return artifacts.spec
    key = artifacts.checkpoint_key()
    return recording.begin(artifacts.spec, rundir, asdict(artifacts.wish), key, made)


def _save(artifacts: Artifacts, into: Path, progress: Progress) -> None:
    clock = "instruction time" if artifacts.wish.clock == "icount" else "wall time"
    with (
        progress.stage(f"booting once, for a checkpoint ({clock})"),
        RunDir.create() as rundir,
        _cold(artifacts, rundir, progress, savable=True) as stack,
    ):
        saved = {
            "domain": stack.domain.record(),
            "lun": vars(stack.lun),
            "cold_s": round(stack.start_s, 3),
        }
        if not luns.session_up(stack.host.dom0, stack.lun):
            raise RigError(f"the iSCSI session of {stack.lun.name} is not up")
        # The kernel's symbols are looked up once, not in every run from here.
        granted.read_account(stack.domain.channel)
        guests = {"dom0": stack.host.dom0, "domu": stack.domain.channel}
        saved["kernel_lines"] = {name: len(kernel_log(guest)) for name, guest in guests.items()}
        stack.domain.close()
        stack.host.close()
        progress.tick("saving the machine")
        checkpoint.save(stack.machine, into / "machine")
        (into / "stack.json").write_text(json.dumps(saved, indent=1) + "\n")


def kernel_log(guest: Channel) -> list[str]:
    """The lines of a guest's kernel log."""
    return guest.run(["dmesg"], timeout=20).text.splitlines()
