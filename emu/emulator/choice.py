"""Which QEMU runs: by name, as `--qemu` and `$EMU_QEMU` take it.

system             the one of this machine's packages (the default)
patched            Debian 12's source with our patches (qemu-patches/)
patched-10.2       a newer one, the same way
PATH               any other program
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from emu.emulator import build as qemubuild
from emu.emulator.build import PATCHED, PROGRAM
from emu.errors import InputError
from emu.hosttools import builds_qemu, installs
from emu.images.cache import Cache
from emu.images.context import BuildContext

SYSTEM = "system"
GIVEN = "EMU_QEMU"
"""The environment's variable that names the default QEMU."""
NAMES = (SYSTEM, *PATCHED)
RECORDING = "patched"
"""The one that records all that reaches a machine (qemu-patches/REPLAY.md)."""


def default(*, recording: bool = False) -> str:
    """The default QEMU; with `recording` one that can record."""
    given = os.environ.get(GIVEN) or SYSTEM
    return RECORDING if recording and given == SYSTEM else given


def program(name: str, context: BuildContext) -> str:
    """What to start for a name or path; one of ours is built if need be.

    Raises InputError for a program that is not there, and as `qemubuild.build`.
    """
    if name in PATCHED:
        return str(qemubuild.build(PATCHED[name], context))
    return _installed(name)


def found(name: str, cache: Cache | None) -> str:
    """As `program`, but builds nothing: InputError for one of ours that is not built yet."""
    if name not in PATCHED:
        return _installed(name)
    built = None if cache is None else qemubuild.built(PATCHED[name], cache)
    if built is None:
        raise InputError(f"{name} is not built yet", hint=builds_qemu(name))
    return str(built)


def _installed(name: str) -> str:
    wanted = PROGRAM if name == SYSTEM else name
    path = shutil.which(wanted)
    if path is None:
        missing = "is not there" if os.sep in wanted else "is not installed"
        wrong = "is no program" if Path(wanted).exists() else missing
        hint = f"{installs(PROGRAM)}, or one of {', '.join(NAMES)}"
        raise InputError(f"{wanted} {wrong}", hint=hint)
    return str(Path(path).absolute())
