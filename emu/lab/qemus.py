"""The available QEMUs, this machine's and ours: their faults, and the CPU their guests get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emu.emulator import choice as emulator
from emu.emulator import faults
from emu.emulator.faults import Fault
from emu.errors import InputError
from emu.images.context import BuildContext
from emu.machine.identity import qemu_version


@dataclass(frozen=True)
class Qemu:
    """One QEMU by the name that `--qemu` takes.

    Where it is missing, `program` is empty and `lacks` says how to get it.
    """

    name: str
    program: str = ""
    version: str = ""
    faults: tuple[Fault, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def cpu(self) -> str:
        """The CPU model that TCG's guests get."""
        return faults.cpu_model(self.faults)


def examine(context: BuildContext) -> list[Qemu]:
    """Every QEMU that has a name, tried if not known; builds none."""
    found = []
    for name in emulator.NAMES:
        try:
            program = emulator.found(name, context.cache)
        except InputError as error:
            found.append(Qemu(name, lacks=(error.message, error.hint or "")))
            continue
        found.append(_examined(name, program, context))
    return found


def build(name: str, context: BuildContext) -> Qemu:
    """Build one of ours, if missing, and try it. Raises InputError as `qemubuild.build`."""
    return _examined(name, emulator.program(name, context), context)


def as_json(qemu: Qemu) -> dict[str, Any]:
    """As JSON."""
    return {
        "name": qemu.name,
        "program": qemu.program or None,
        "version": qemu.version or None,
        "faults": [fault.name for fault in qemu.faults] if qemu.program else None,
        "cpu": qemu.cpu if qemu.program else None,
    }


def _examined(name: str, program: str, context: BuildContext) -> Qemu:
    version = qemu_version(program).removeprefix("QEMU emulator version ")
    return Qemu(name, program, version, faults.find(program, context))
