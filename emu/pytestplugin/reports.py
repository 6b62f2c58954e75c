"""What a failure shows: the test's own lines, the consoles, the state of the stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emu import paths
from emu.channel.channel import CommandTimeout
from emu.errors import EmuError, InputError, RigError
from emu.lab import statedump
from emu.lab.stack import Stack
from emu.machine.watch import GuestTrouble, WaitTimeout
from emu.progress import Progress
from emu.pytestplugin.timer import untimed

SHOWN_LINES = 40
RIG = "rig"
"""The phase that a report names when the rig broke: pytest counts all but "call" as errors."""
_OF_THE_STACK = (GuestTrouble, CommandTimeout, WaitTimeout)
"""RigErrors that tell of a guest: under test, it is what they fail that failed."""


class PrintedProgress(Progress):
    """Prints what it is told, for pytest to show when a test fails; keeps the notes.

    What has stages is done once for many tests (a kernel, a checkpoint, the wait for another
    process that makes one), and may take longer than a test: it is nobody's time.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.notes: list[str] = []
        self._config = config

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        print(f"{what} …")
        with untimed(self._config):
            yield

    def note(self, line: str) -> None:
        print(line)
        self.notes.append(line)


def is_of_the_rig(error: BaseException) -> bool:
    """Whether the rig broke, and nothing can be said of what is under test."""
    return isinstance(error, RigError | InputError) and not isinstance(error, _OF_THE_STACK)


def is_timeout(error: BaseException) -> bool:
    """Whether pytest-timeout ended the test (it calls pytest.fail from its timer)."""
    return isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout")


def hide_our_frames(call: pytest.CallInfo[None]) -> None:
    """Leave the lines of the test in a traceback, not the thirty of ours below them.

    pytest passes over frames whose globals have this name (its own and those of helpers).
    """
    if call.excinfo is None or not isinstance(call.excinfo.value, EmuError):
        return
    ours = Path(paths.__file__).parent
    for entry in call.excinfo.traceback:
        if ours in Path(entry.path).parents:
            entry.frame.f_globals["__tracebackhide__"] = _tells_a_person


def _tells_a_person(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return isinstance(error.value, EmuError)


def add_sections(report: pytest.TestReport, stack: Stack, timed_out: bool) -> None:
    """What the consoles said and, in files, how the stack stands; after a time-out shown, too."""
    run = stack.machine.rundir
    run.keep(report.nodeid)
    report.sections.append((f"consoles of {run.path}", last_lines(run.log("console"))))
    dump = statedump.collect(stack, run)
    if timed_out:
        for part in dump:
            report.sections.append((part.title, part.tail(SHOWN_LINES)))
    else:
        report.sections.append(
            ("state of the stack", "\n".join(str(part.path) for part in dump) or "not to be had")
        )


def last_lines(log: Path, count: int = SHOWN_LINES) -> str:
    """The last lines of a log, or why there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"no log: {error}"
    return "\n".join(lines[-count:])
