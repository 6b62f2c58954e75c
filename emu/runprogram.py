"""Running a program of this machine: found or refused, within a limit, never in silence.

A program that is missing is an InputError that says how to install it; one that fails is an
error with its last lines; one that runs for longer than QUIET is reported, and one that
exceeds its limit is killed and named.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.deadline import Deadline
from emu.errors import EmuError, InputError, RigError
from emu.hosttools import find_tool, installs
from emu.progress import Progress

QUIET = 5.0
"""Seconds without a sign of life after which what runs is reported, again and again."""
LIMIT = 300.0
"""Seconds a program may run (before scaling); the longest, tar of a kernel tree, takes 30."""
SILENCE = 900.0
"""Seconds a build may print nothing (before scaling); linking vmlinux takes 40."""
_SHOWN = 60
"""Characters of a command that are shown while it runs."""


@dataclass(frozen=True)
class Output:
    """What a program left: its exit status and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output."""
        return self.stdout.decode(errors="replace")

    @property
    def errors(self) -> str:
        """Its standard error."""
        return self.stderr.decode(errors="replace")

    def tail(self, count: int) -> list[str]:
        """The last lines of both, those of standard error at the end."""
        return (self.text + self.errors).splitlines()[-count:]


def find_program(name: str, hint: str | None = None) -> str:
    """The path of a program, also where only root's PATH looks. InputError if there is none."""
    path = find_tool(name)
    if path is None:
        raise InputError(f"{name} is not installed", hint=hint or installs(name))
    return path


def run(
    command: Sequence[str],
    failed: str | None = None,
    *,
    error: type[EmuError] = RigError,
    lines: int = 8,
    hint: str | None = None,
    missing: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    data: bytes = b"",
    pass_fds: Sequence[int] = (),
    executable: str | None = None,
    progress: Progress | None = None,
    limit: float = LIMIT,
) -> Output:
    """Run a program to its end, `data` on its standard input.

    A status other than 0 raises `error` with the message `failed`, the last `lines` of the
    output and `hint`; without `failed` the caller judges the status. `missing` is the hint
    if the program is not installed (by default the command that installs it). Raises RigError
    after `limit` seconds (before scaling). The program does not outlive an exception.
    """
    program = executable or find_program(command[0], missing)
    deadline = Deadline(_shown(command), limit)
    # From a file: Popen.communicate() loses what it has not written when a time-out ends it.
    with tempfile.TemporaryFile() as given:
        given.write(data)
        given.seek(0)
        process = subprocess.Popen(
            command, executable=program, cwd=cwd, env=env, pass_fds=pass_fds,
            start_new_session=True, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    with _killed_on_exception(process):
        while True:
            try:
                out, err = process.communicate(timeout=min(QUIET, deadline.left))
                break
            except subprocess.TimeoutExpired as slow:
                if deadline.passed:
                    seen = (slow.output or b"") + (slow.stderr or b"")
                    raise _too_slow(deadline, seen.decode(errors="replace")) from None
                if progress is not None:
                    progress.tick(f"waiting for {deadline}")
    done = Output(process.returncode, out, err)
    if done.status and failed is not None:
        raise error(failed, lines=done.tail(lines), hint=hint)
    return done


def follow(
    command: Sequence[str],
    each: Callable[[str], None],
    *,
    cwd: Path,
    env: Mapping[str, str],
    progress: Progress,
    silence: float = SILENCE,
) -> tuple[int, list[str]]:
    """Run a build tool and pass each line it prints to `each`; its status and all its lines.

    `silence` is how many seconds (before scaling) it may print nothing: the limit that a build
    of unknown length has. The tool does not outlive this call.
    """
    program = find_program(command[0])
    printed = list[str]()
    process = subprocess.Popen(
        command, executable=program, cwd=cwd, env=env, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with _killed_on_exception(process, signal.SIGTERM):
        assert process.stdout is not None
        # If we are killed the pipe breaks, and with it the next step of make that prints.
        for line in _lines(process.stdout.fileno(), command, progress, silence, printed):
            printed.append(line)
            each(line)
        status = _reaped(process, Deadline(f"{_shown(command)} to exit", 60))
    return status, printed


@contextlib.contextmanager
def bounded(
    process: subprocess.Popen[bytes], what: str, limit: float = LIMIT
) -> Iterator[Deadline]:
    """Kill a program that is fed or read by its user when it exceeds `limit` (before scaling).

    What its user waits for ends with it, and RigError says why. The program does not outlive
    an exception.
    """
    deadline = Deadline(what, limit)
    timer = threading.Timer(deadline.seconds, _kill, (process,))
    timer.daemon = True
    timer.start()
    try:
        with _killed_on_exception(process):
            yield deadline
            process.wait()
    except Exception as error:
        if deadline.passed:
            raise _too_slow(deadline, "") from error
        raise
    finally:
        timer.cancel()
    if process.returncode and deadline.passed:
        raise _too_slow(deadline, "")


def _lines(
    handle: int, command: Sequence[str], progress: Progress, silence: float, printed: list[str]
) -> Iterator[str]:
    """Each line that is printed until the end of file."""
    rest = b""
    deadline = Deadline(f"output of {_shown(command)}", silence)
    while True:
        ready, _, _ = select.select([handle], [], [], min(QUIET, deadline.left))
        if not ready:
            if deadline.passed:
                raise _too_slow(deadline, "\n".join(printed))
            progress.tick(f"waiting for {deadline}")
            continue
        data = os.read(handle, 1 << 16)
        deadline = Deadline(deadline.what, silence)
        *whole, rest = (rest + data).split(b"\n")
        for line in whole if data else filter(None, [*whole, rest]):
            yield line.decode(errors="replace").rstrip()
        if not data:
            return


def _reaped(process: subprocess.Popen[bytes], deadline: Deadline) -> int:
    try:
        return process.wait(deadline.left)
    except subprocess.TimeoutExpired:
        raise _too_slow(deadline, "") from None


@contextlib.contextmanager
def _killed_on_exception(
    process: subprocess.Popen[bytes], kind: signal.Signals = signal.SIGKILL
) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _kill(process, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        _kill(process)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _kill(process: subprocess.Popen[bytes], kind: signal.Signals = signal.SIGKILL) -> None:
    """Signal the program, and its children where it leads a group of its own."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, kind)
        else:
            process.send_signal(kind)


def _too_slow(deadline: Deadline, output: str) -> RigError:
    return RigError(
        f"{deadline.what}: no end after {deadline.seconds:.0f} s, killed",
        lines=output.splitlines()[-5:],
        hint="is the machine very busy? EMU_TIMEOUT_SCALE=2 doubles the limit",
    )


def _shown(command: Sequence[str]) -> str:
    text = " ".join([Path(command[0]).name, *map(str, command[1:])])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
