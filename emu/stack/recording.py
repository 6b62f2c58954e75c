"""A recorded run: QEMU's log in the run's directory, and a description of what it records.

machine.recording   the machine's input, and when it came (QEMU's format)
recording.json      the request, the machine's inputs, its first state, its instruction count
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
HINT = "record it again: a replay needs exactly the files of the recording"


@dataclass(frozen=True)
class Recorded:
    """A recording that can be replayed.

    `wish` are the fields of its `Wish`; `key` the inputs of the machine, as of a checkpoint;
    `began` the SHA-256 of the state that it started from ("" for a cold boot); `instructions`
    the number executed by its end.
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
    """End a recorded machine in such a way that its log is complete, also after an error.

    To be left before our end of dom0's port is closed: dom0 notices that, and the log does not
    have it.
    """
    try:
        yield
    finally:
        if machine.spec.recording and _finish(machine):
            progress.note(f"recorded: emu replay {machine.rundir.path}")


def _finish(machine: Machine) -> bool:
    """End a recorded machine, and note its instruction count; False if QEMU had ended before."""
    path = machine.rundir.path / NOTE
    count = 0
    with contextlib.suppress(RigError):
        count = executed(machine)
        note = json.loads(path.read_text())
        path.write_text(json.dumps({**note, "instructions": count}, indent=1) + "\n")
    machine.stop()
    return count > 0


def executed(machine: Machine) -> int:
    """The number of instructions that a recorded or replayed machine has executed."""
    count: int = machine.qmp("query-replay")["icount"]
    return count


def state_of(made: Path | None) -> str:
    """A hash that differs between checkpoints of the same inputs; "" without one."""
    if made is None:
        return ""
    return hashlib.sha256((made / "machine" / "state").read_bytes()).hexdigest()


def newest(root: Path | None = None) -> Path:
    """The directory of the last recorded run. Raises InputError when there is none."""
    root = root or paths.runs_root()
    notes = sorted(root.glob(f"*/{NOTE}"))  # a run's name starts with its date
    if not notes:
        raise InputError(f"no run in {root} was recorded", hint="emu run --record")
    return notes[-1].parent


def find(run: Path) -> Recorded:
    """The recording in a run's directory. Raises InputError when it is missing or incomplete."""
    try:
        note = json.loads((run / NOTE).read_text())
        recorded = Recorded(run, **note)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{run} holds no recording: {error}") from error
    if not recorded.log.exists():
        raise InputError(f"{run} holds no recording: {LOG} is missing")
    if not recorded.instructions:
        raise InputError(
            f"the recording in {run} has no end: its QEMU was killed, or ended by itself", hint=HINT
        )
    return recorded
