"""`emu replay`: replay a recorded run, instruction by instruction.

The same machine is started from the same state; its input comes from QEMU's log. What happened
once in a hundred runs happens each time, also under a debugger. The consoles have to print the
same; progress is counted in instructions.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emu.deadline import Deadline
from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.machine import checkpoint
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import Recording
from emu.progress import Progress
from emu.stack import recording
from emu.stack.recording import HINT, Recorded
from emu.stack.stack import Artifacts, prepare
from emu.stack.wish import Wish
from emu.xen.host import AGENT_PORT

CONSOLES = ("xen", "dom0")
"""Those of the machine itself; a domU's passes through dom0's port."""
STUCK_AFTER = 60.0
"""Seconds, before scaling, without progress after which a replay is given up."""
_HELD_AFTER = 2.0
"""Seconds without one more instruction after which a debugger has stopped the machine."""
_PAUSE = 0.5


@dataclass(frozen=True)
class Compared:
    """Lines of a console, recorded and replayed; `differs` is the first pair that differs.

    Time stamps and the last line, which may be cut off, are ignored.
    """

    name: str
    recorded: int
    replayed: int
    differs: tuple[str, str] | None


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    recorded: Recorded
    run: Path
    instructions: int
    consoles: tuple[Compared, ...]

    @property
    def same(self) -> bool:
        """Whether every console printed something, and the same as recorded."""
        return all(not each.differs and each.recorded for each in self.consoles)


def replay(run: Path, context: BuildContext, gdb: int | None = None) -> Replay:
    """Replay the recording in a run's directory to its end.

    With `gdb` QEMU waits for a debugger on that port of 127.0.0.1, and continues when it does.
    Raises InputError for what can't be replayed here; RigError when it makes no progress.
    """
    recorded = recording.find(run)
    with context.progress.stage("preparing"):
        artifacts = _artifacts(recorded, context)
        made = _began(recorded, artifacts, context.cache)
    before = {name: (run / f"{name}.log").read_text(errors="replace") for name in CONSOLES}
    spec = replace(artifacts.spec, recording=Recording(recorded.log, "replay"))
    with RunDir.create() as rundir, context.progress.stage(f"replaying {run}"):
        if made is None:
            halted = ("-S",) if gdb else ()
            machine = Machine.start(replace(spec, extra=spec.extra + halted), rundir)
        else:
            machine = checkpoint.load(spec, made / "machine", rundir, paused=bool(gdb))
        with machine, _drained(machine.port(AGENT_PORT)):
            if gdb:
                _listen(machine, gdb)
                context.progress.note(f"the machine waits for gdb: target remote :{gdb}")
            instructions = _followed(machine, recorded, context.progress, patient=bool(gdb))
        after = {name: rundir.log(name).read_text(errors="replace") for name in CONSOLES}
    return Replay(
        recorded,
        rundir.path,
        instructions,
        tuple(compare(name, before[name], after[name]) for name in CONSOLES),
    )


def _listen(machine: Machine, port: int) -> None:
    # When gdb connects QEMU takes a snapshot, to go back to (replay_gdb_attached()), and hangs:
    # the flush for it is not in the log. With a disk without snapshots it continues without one.
    machine.qmp("blockdev-add", driver="null-co", node_name="without-snapshots")
    answer = machine.qmp(
        "human-monitor-command", command_line=f"gdbserver tcp:127.0.0.1:{port}"
    ).strip()
    if not answer.startswith("Waiting for gdb"):
        raise InputError(f"QEMU can't listen on port {port}: {answer}", hint="--gdb another port")


def compare(name: str, recorded: str, replayed: str) -> Compared:
    """A console's two logs, line by line."""
    one, other = _lines(recorded), _lines(replayed)
    pairs = itertools.zip_longest(one, other, fillvalue="(nothing more)")
    differs = next((pair for pair in pairs if pair[0] != pair[1]), None)
    return Compared(name, len(one), len(other), differs)


def _lines(log: str) -> list[str]:
    return [line.partition("] ")[2] for line in log.splitlines()][:-1]


def _artifacts(recorded: Recorded, context: BuildContext) -> Artifacts:
    """The artifacts of the recorded run."""
    fields: dict[str, Any] = {**recorded.wish, "record": False}
    try:
        wish = Wish.of_fields(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the recording in {recorded.run} was made by another version: {error}"
        ) from None
    artifacts = prepare(wish, context)
    now = artifacts.checkpoint_key()
    if changed := [name for name in now if now[name] != recorded.key.get(name)]:
        raise InputError(
            f"the recording in {recorded.run} was made with another {', '.join(changed)}",
            hint=HINT,
        )
    return artifacts


def _began(recorded: Recorded, artifacts: Artifacts, cache: Cache) -> Path | None:
    """The checkpoint that the recorded run started from; None for one that booted."""
    if not recorded.began:
        return None
    made = cache.find("checkpoint", artifacts.checkpoint_key())
    if made is None or recording.state_of(made) != recorded.began:
        what = "is gone" if made is None else "was rebuilt since"
        raise InputError(
            f"the checkpoint that the recording in {recorded.run} starts from {what}", hint=HINT
        )
    return made


def _followed(machine: Machine, recorded: Recorded, progress: Progress, *, patient: bool) -> int:
    """Wait for the end of the log; the number of instructions by then, as last seen."""
    total, seen = recorded.instructions, -1
    stuck = Deadline("the next instruction", STUCK_AFTER)
    while machine.running:
        with contextlib.suppress(RigError):  # QEMU ends at the end of the log
            now = recording.executed(machine)
            if now != seen:
                seen, stuck = now, Deadline("the next instruction", STUCK_AFTER)
        where = f"{seen / 1e9:.1f} of {total / 1e9:.1f} G instructions"
        held = patient and stuck.spent > _HELD_AFTER
        progress.tick(f"{where}, stopped: waiting for the debugger" if held else where)
        if stuck.passed and not patient:
            raise RigError(
                f"the replay is stuck at instruction {seen} of {total} ({stuck.spent:.0f} s)",
                hint="the log expects what the machine does not do: see qemu-patches/REPLAY.md",
                lines=machine.dom0.last_lines(5),
            )
        time.sleep(_PAUSE)
    return seen


@contextlib.contextmanager
def _drained(port: socket.socket) -> Iterator[None]:
    """Discard what dom0's agent sends: QEMU waits for a reader."""

    def drain() -> None:
        with contextlib.suppress(OSError):
            while port.recv(65536):
                pass

    reader = threading.Thread(target=drain, name="replayed port", daemon=True)
    reader.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            port.shutdown(socket.SHUT_RDWR)
        reader.join()
        port.close()
