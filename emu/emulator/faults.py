"""Faults of a QEMU under TCG that matter to Xen: found by trying it.

The guests that try are in qemu-patches/tests/, one a fault: a hundred lines that boot at
once and print "right" or "wrong" on COM1. The answers are kept for each QEMU, by the hash
of its program, and decide what is left out of the CPU that the guests get.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.errors import InputError
from emu.hosttools import installs
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.machine import checkpoint
from emu.machine.checkpoint import CheckpointBroken
from emu.machine.identity import hash_of_program, qemu_version
from emu.machine.qemu import Machine, MachineEnded
from emu.machine.rundir import RunDir
from emu.machine.spec import Clock, MachineSpec
from emu.runprogram import run

CPU = "max"
"""The model for a QEMU without faults, and the one that all are tried with."""
TIMEOUT = 10.0
"""Seconds for a guest's answer: it comes in half a second."""
_GUEST_MODE = "guest-mode"
SERIAL_RECORDED = "serial-recorded"
"""A guest for who records it: it decides nothing about a CPU, and is no fault's."""
LOST_INTERRUPT = "lost-interrupt"
"""A guest for patch 0016: a race, for which a QEMU that is right is tried for ten seconds, and no
CPU has less of it. So it is for the tests of the patches, and the rig expects it of any QEMU."""
_FLAGS = (
    *("-m64", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffreestanding"),
    *("-fno-pie", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-mno-red-zone", "-mgeneral-regs-only"),
    *("-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-T,link.ld"),
)
_RECIPE = 1


@dataclass(frozen=True)
class Fault:
    """`name` is that of its guest (qemu-patches/tests/<name>.c) and `patch` mends it.

    `without` are the features of the CPU model that a guest must not see because of it. It is
    tried on `clock`. With `no_pvh` no PVH domU starts, whatever the CPU.
    """

    name: str
    what: str
    without: tuple[str, ...]
    patch: str
    clock: Clock = "wall"
    no_pvh: bool = False


FAULTS = (
    Fault(
        "smap",
        "with SMAP a far return in ring 3 faults: a PV dom0 dies",
        ("smap", "smep"),
        "0001",
    ),
    Fault(
        "rdtscp",
        "RDTSCP raises no SVM exit of its own: a PVH domU hangs",
        ("rdtscp",),
        "0002",
    ),
    Fault(
        "xsetbv",
        "XSETBV raises no SVM exit: Linux in a PVH domU warns of its XSAVE state",
        ("xsave",),
        "0003",
    ),
    Fault(
        _GUEST_MODE,
        "a checkpoint that is taken while a PVH domU runs does not load",
        (),
        "0004",
    ),
    Fault(
        "task-switched",
        "XSAVE and XRSTOR pass over CR0.TS: guests get each other's FPU registers",
        ("xsave",),
        "0005",
    ),
    Fault(
        "injected",
        "an interrupt that VMRUN injects may come twice: a PVH domU gets one that was none",
        (),
        "0012",
        clock="icount",  # the vCPU leaves its loop at each timer then
    ),
    Fault(
        "x2apic",
        "on instruction time QEMU ends when the x2APIC's timer is read: Xen does not boot",
        ("x2apic",),
        "0014",
        clock="icount",
    ),
    Fault(
        "cr-read",
        "a read of any control register raises the SVM exit of CR0: no PVH domU starts",
        (),
        "0015",
        no_pvh=True,
    ),
)


def cpu_model(faults: Iterable[Fault]) -> str:
    """QEMU's `-cpu` for a QEMU that has these faults."""
    left_out = dict.fromkeys(feature for fault in faults for feature in fault.without)
    return ",".join([CPU, *(f"-{feature}" for feature in left_out)])


def find(qemu: str, context: BuildContext) -> tuple[Fault, ...]:
    """The faults of a QEMU, in FAULTS' order; tried once (3 s) and then known.

    Raises InputError without QEMU or without a compiler, RigError when a guest has no answer.
    """
    guests = build(context)

    def fill(made: Path) -> None:
        # Apart from the user's runs, whose logs these are not.
        with (
            context.progress.stage(f"trying what {qemu} gets wrong"),
            context.cache.scratch("qemu-faults") as runs,
        ):
            wrong = [fault.name for fault in FAULTS if not right(fault, qemu, guests, runs)]
        (made / "answer.json").write_text(json.dumps({"wrong": wrong}))

    return _answer(context.entry("qemu-faults", _inputs(qemu), fill))


def known(qemu: str, cache: Cache) -> tuple[Fault, ...] | None:
    """The faults of a QEMU if they were tried before; starts nothing."""
    entry = cache.find("qemu-faults", _inputs(qemu))
    return None if entry is None else _answer(entry)


def _answer(entry: Path) -> tuple[Fault, ...]:
    wrong = json.loads((entry / "answer.json").read_text())["wrong"]
    return tuple(fault for fault in FAULTS if fault.name in wrong)


def _inputs(qemu: str) -> dict[str, JSON]:
    path = shutil.which(qemu)
    if path is None:
        raise InputError(f"{qemu} is not installed", hint=installs(qemu))
    return {
        "version": qemu_version(path),
        "program": hash_of_program(Path(path).resolve()),
        "guests": _sources(),
        "recipe": _RECIPE,
    }


def _sources() -> dict[str, JSON]:
    folder = paths.qemu_patches() / "tests"
    files = sorted(path for path in folder.iterdir() if path.suffix in (".S", ".c", ".h", ".ld"))
    return dict(zip((path.name for path in files), kbuild.digest(files), strict=True))


def build(context: BuildContext) -> Path:
    """The directory of the guests, compiled (a second) unless the cache has them."""
    toolchain = kbuild.find_toolchain()
    inputs: dict[str, JSON] = {
        "sources": _sources(),
        "flags": list(_FLAGS),
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
    }

    def fill(made: Path) -> None:
        for name in (*(fault.name for fault in FAULTS), SERIAL_RECORDED, LOST_INTERRUPT):
            with context.cache.scratch("qemu-guest") as scratch:
                linked = scratch / "guest"
                _run([toolchain.cc, *_FLAGS, "-o", str(linked), "start.S", f"{name}.c"])
                # QEMU boots a multiboot kernel only if its ELF header says 32 bits.
                _run(["objcopy", "-O", "elf32-i386", str(linked), str(made / name)])

    return context.entry("qemu-guests", inputs, fill)


def _run(command: list[str]) -> None:
    failed = "the guests that try QEMU can't be built"
    run(command, failed, error=InputError, cwd=paths.qemu_patches() / "tests")


def right(fault: Fault, qemu: str, guests: Path, runs: Path) -> bool:
    """Whether QEMU does it right: start the fault's guest, and see.

    `runs` is where the runs' directories are made.
    """
    spec = MachineSpec(
        xen=guests / fault.name, qemu=qemu, cpu=CPU, clock=fault.clock, memory_mib=64
    )
    try:
        with RunDir.create(runs) as rundir:
            if fault.name == _GUEST_MODE:
                return _goes_on(spec, rundir, runs)
            with Machine.start(spec, rundir) as machine:
                return machine.xen.expect(["right", "wrong"], TIMEOUT, "the guest's answer") == 0
    except MachineEnded:  # a triple fault, or an error of QEMU's own
        return False


def _goes_on(spec: MachineSpec, rundir: RunDir, runs: Path) -> bool:
    """Save the machine while a guest's guest runs, load it, and see that guest go on."""
    running = "in guest mode"
    saved = rundir.state / "saved"
    with Machine.start(spec, rundir, savable=True) as machine:
        machine.xen.expect(running, TIMEOUT, "the guest's guest")
        checkpoint.save(machine, saved, settle=False)
    try:
        with RunDir.create(runs) as other, checkpoint.load(spec, saved, other) as machine:
            machine.xen.expect(running, TIMEOUT, "the guest's guest to go on")
    except CheckpointBroken:
        return False
    return True
