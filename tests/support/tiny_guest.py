"""A guest of 3 KiB that boots at once, shows its modules and counts keys.

It is a multiboot kernel, like Xen. On com1 it prints its command line and those of its
modules with the modules' first bytes, then "ready". For every byte that comes on com2 it
adds one to a number in RAM and prints it on com2. `H` halts it with no timer running, `I` with
one, `R` resets it, `F` floods com2, `X` prints a panic of Xen.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import MachineSpec

_SOURCE = Path(__file__).with_suffix(".c")


def build(directory: Path) -> Path:
    """Compile the guest into `directory`; the path of its ELF file."""
    program = directory / "guest"
    flags = "-m32 -O1 -ffreestanding -nostdlib -static -fno-pic -fno-pie -no-pie"
    flags += " -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables"
    flags += " -Wl,--build-id=none -Wl,-Ttext=0x100400 -Wl,--section-start=.head=0x100000"
    subprocess.run(["gcc", *flags.split(), "-o", str(program), str(_SOURCE)], check=True)
    return program


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Machine]:
    """A machine with the guest, which is ready; built and run in `directory`."""
    spec = MachineSpec(xen=build(directory), memory_mib=32)
    with RunDir.create(directory / "runs") as rundir, Machine.start(spec, rundir) as machine:
        machine.xen.expect("ready", timeout=20)
        yield machine
