"""A run that is recorded: QEMU's log in its directory, and beside it what it is a log of.

machine.recording   what reached the machine from outside, and when (QEMU's format)
recording.json      the wish, what it came to, where the machine began, how far it got
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError, RigError
from emu.images.manifest import JSON
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import MachineSpec, Recording
from emu.progress import Progress

LOG = "machine.recording"
NOTE = "recording.json"
HINT = "record it again: what is replayed has to be what was recorded, to the last byte"


@dataclass(frozen=True)
class Recorded:
    """A recording that can be replayed.

    `wish` are the fields of its `Wish`; `key` is what the machine was made of, as a checkpoint's
    inputs; `began` the SHA-256 of the state that it began from ("" for a cold boot);
    `instructions` how many had been executed at its end.
    """

    run: Path
    wish: Mapping[str, Any]
    key: Mapping[str, JSON]
    began: str
    instructions: int

    @property
    def log(self) -> Path:
        """QEMU's log."""
        return self.run / LOG


def begin(
    spec: MachineSpec,
    rundir: RunDir,
    wish: Mapping[str, Any],
    key: Mapping[str, JSON],
    made: Path | None,
) -> MachineSpec:
    """The spec of a machine that is recorded into `rundir`; `made` is its checkpoint, if any."""
    note = {"wish": dict(wish), "key": dict(key), "began": state_of(made), "instructions": 0}
    (rundir.path / NOTE).write_text(json.dumps(note, indent=1) + "\n")
    return replace(spec, recording=Recording(rundir.path / LOG, "record"))


@contextlib.contextmanager
def ended(machine: Machine, progress: Progress) -> Iterator[None]:
    """Ends a machine that is recorded so that its log is whole, whatever happens.

    Before the host's end of dom0's port is closed: dom0 is told of that, and the log is not.
    """
    try:
        yield
    finally:
        if machine.spec.recording and _finish(machine):
            progress.note(f"recorded: emu replay {machine.rundir.path}")


def _finish(machine: Machine) -> bool:
    """End a recorded machine, and note how far it got; False if it had ended by itself."""
    path = machine.rundir.path / NOTE
    count = 0
    with contextlib.suppress(RigError):
        count = executed(machine)
        note = json.loads(path.read_text())
        path.write_text(json.dumps({**note, "instructions": count}, indent=1) + "\n")
    machine.stop()
    return count > 0


def executed(machine: Machine) -> int:
    """How many instructions a recorded or replayed machine has executed."""
    count: int = machine.qmp("query-replay")["icount"]
    return count


def state_of(made: Path | None) -> str:
    """What tells a checkpoint from another that was made of the same inputs; "" without one."""
    if made is None:
        return ""
    return hashlib.sha256((made / "machine" / "state").read_bytes()).hexdigest()


def newest(root: Path | None = None) -> Path:
    """The directory of the last run that was recorded. Raises InputError when there is none."""
    root = root or paths.runs_root()
    notes = sorted(root.glob(f"*/{NOTE}"))  # a run's name begins with its date
    if not notes:
        raise InputError(f"no run in {root} was recorded", hint="emu run --record")
    return notes[-1].parent


def find(run: Path) -> Recorded:
    """The recording in a run's directory. Raises InputError where there is none, or half of it."""
    try:
        note = json.loads((run / NOTE).read_text())
        recorded = Recorded(run, **note)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{run} holds no recording: {error}") from error
    if not recorded.log.exists():
        raise InputError(f"{run} holds no recording: {LOG} is not there")
    if not recorded.instructions:
        raise InputError(
            f"the recording in {run} has no end: its QEMU was killed, or ended by itself", hint=HINT
        )
    return recorded
