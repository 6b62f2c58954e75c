"""The command channel to a guest: commands and files, many at once, over one byte stream.

The guest's end is guest-images/agent/. A channel lies over a socket, or over a `Process` of
another channel: a domU is reached through a bridge that runs in dom0.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emu.channel import files, frames
from emu.channel.changes import Changes, Guard
from emu.channel.frames import ExecFlag, Frame, ToGuest
from emu.channel.mux import WINDOW, Mux
from emu.channel.process import Output, Process
from emu.channel.result import (
    PAUSE,
    Arg,
    ChannelLost,
    CommandFailed,
    CommandResult,
    CommandTimeout,
    Ended,
    last_lines,
    shown,
)
from emu.channel.stream import Stream
from emu.deadline import Deadline
from emu.errors import EmuError, GuestError, RigError

__all__ = [
    "Channel",
    "ChannelLost",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "Ended",
    "Guard",
    "Process",
    "Stream",
]

OUTPUT_LIMIT = 256 * 1024 * 1024
"""Bytes that `run` takes of one command before it calls that an error."""
TAIL_LIMIT = 64 * 1024
"""Bytes of each output that `wait_until` keeps: the last ones."""
_KILL_GRACE = 3.0
# The pipe is there in our guests (see PAUSE); `sleep` is for any other.
_UNTIL = f"""until {{condition}}
do if [ -p /run/pause ]; then {PAUSE}; else sleep 0.02; fi; done"""
_AGENT = "emu-agent"


class Channel:
    """Commands and files of one guest, which errors call `name`. It owns the stream.

    Any thread may use it but the reactor's, which runs it. `guard` is asked, on the caller's
    thread, at the beginning of every wait and when it reports trouble; what it raises ends the
    wait. `on_trouble` is called, once and in the reactor's thread, when a channel that worked is
    lost.
    """

    def __init__(
        self,
        stream: socket.socket | Stream,
        *,
        name: str,
        on_trouble: Callable[[ChannelLost], None] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.name = name
        self._mux = Mux(stream, name, on_trouble, guard)

    def hello(self, timeout: float = 30.0) -> None:
        """Introduce ourselves to the agent, whatever lies in the pipe; may be repeated.

        The agent ends all commands of the peer before. `timeout` in seconds before scaling.
        Raises GuestError (no answer), RigError (another version), ChannelLost.
        """
        self._mux.hello(timeout)

    def run(
        self,
        argv: Sequence[Arg] | str,
        *,
        input: bytes = b"",
        timeout: float,
        check: bool = True,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run a command to its end; a plain string goes to /bin/sh.

        It ends with its process: what that leaves in the background keeps running, without
        output. `timeout` in seconds before scaling; after that the whole tree is killed.
        Raises CommandFailed (with `check`), CommandTimeout, ChannelLost, or what the guard
        raises.
        """
        output = _Collected(OUTPUT_LIMIT)
        argv = _words(argv)
        deadline = Deadline(f"{shown(argv)} to end", timeout)
        process = self._spawn(
            argv, ExecFlag(0) if input else ExecFlag.NO_STDIN, cwd, env, output.take
        )
        output.on_full = process.kill
        began = time.monotonic()
        try:
            ended = _feed_and_wait(process, input, deadline)
        except CommandTimeout:
            what = f"{shown(argv)} did not end within {deadline.seconds:g} s"
            raise self._timed_out(process, what, output) from None
        finally:
            if process.ended is None:
                process.close()
        seconds = time.monotonic() - began
        stdout, stderr = output.bytes(1), output.bytes(2)
        if output.full:
            raise RigError(f"{self.name}: {shown(process.argv)} printed more than {OUTPUT_LIMIT} B")
        if ended.reason:
            stderr += f"{shown(process.argv)} {ended}\n".encode()
        result = CommandResult(process.argv, ended.status, ended.signal, stdout, stderr, seconds)
        if check and ended.status != 0:
            raise CommandFailed(self.name, result, ended)
        return result

    def wait_until(self, condition: str, what: str, timeout: float, *arguments: Arg) -> str:
        """Wait until a shell condition holds in the guest; what it wrote to standard output.

        `condition` is what a shell's `until` takes, with `arguments` as $1, $2 and so on. One
        command in the guest tries it every 20 ms (and at once). It should print to standard
        output only when it holds; what it prints to standard error is in the errors. Where it
        can't hold any more it may give up with `exit`. `what` is awaited, for errors; `timeout`
        is in seconds before scaling, on this machine's clock.
        Raises CommandTimeout, CommandFailed (it gave up, or is no condition), ChannelLost, or
        what the guard raises.
        """
        output = _Collected(None)
        deadline = Deadline(what, timeout)
        argv = ("/bin/sh", "-c", _UNTIL.format(condition=condition.strip()), "sh", *arguments)
        with self._spawn(argv, ExecFlag.NO_STDIN, on_output=output.take) as process:
            try:
                ended = process.wait(deadline)
            except CommandTimeout:
                waited = f"waited {deadline.seconds:g} s for {what}"
                raise self._timed_out(process, waited, output) from None
        stdout, stderr = output.bytes(1), output.bytes(2)
        if ended.status != 0:
            result = CommandResult(argv, ended.status, ended.signal, stdout, stderr, deadline.spent)
            raise CommandFailed(self.name, result, ended)
        return stdout.decode("utf-8", "replace")

    def spawn(
        self,
        argv: Sequence[Arg] | str,
        *,
        pty: tuple[int, int] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Process:
        """Start a command and leave it running; `pty` is a terminal's rows and columns.

        With `on_stdout` or `on_stderr` output goes there as it comes, in the reactor's thread,
        which must not be blocked; else it waits to be read.
        """
        flags = ExecFlag.PTY if pty else ExecFlag(0)

        def on_either(stream: int, data: bytes) -> None:
            callback = on_stdout if stream == 1 else on_stderr
            if callback is not None:
                callback(data)

        on_output = on_either if on_stdout or on_stderr else None
        return self._spawn(_words(argv), flags, cwd, env, on_output, pty or (0, 0))

    def bridge(self, path: str, *, tty: bool = False) -> Process:
        """A byte stream to a Unix socket (or a terminal, in raw mode) inside the guest."""
        return self._spawn((_AGENT, "tty" if tty else "connect", path), ExecFlag.SELF)

    def put(
        self,
        source: Path | bytes,
        remote: str,
        mode: int = 0o644,
        timeout: float | None = None,
    ) -> None:
        """Copy a file into the guest; it appears whole, checked, with `mode`, or not at all.

        `timeout` in seconds before scaling; the default follows the size (`files.patience`).
        Raises CommandFailed, CommandTimeout, ChannelLost.
        """
        seconds = files.patience(source) if timeout is None else timeout
        deadline = Deadline("the file to be written", seconds)
        argv = (_AGENT, "put", f"{mode:o}", remote)
        with self._spawn(argv, ExecFlag.SELF | ExecFlag.GENTLE) as process:
            files.send(process, source, deadline)
            self._expect_success(process, deadline)

    def get(self, remote: str, local: Path | None = None, timeout: float = 300.0) -> bytes:
        """Read a file of the guest, checked; into `local` when given (b"" is returned then).

        `timeout` in seconds before scaling. Raises CommandFailed, CommandTimeout, ChannelLost,
        GuestError when it came damaged.
        """
        deadline = Deadline("the file to be read", timeout)
        argv = (_AGENT, "get", remote)
        with self._spawn(argv, ExecFlag.SELF | ExecFlag.NO_STDIN) as process:
            chunks = files.receive(
                process, deadline, lambda: self._expect_success(process, deadline)
            )
            return b"".join(chunks) if local is None else files.save(chunks, local)

    def ping(self, timeout: float = 10.0) -> float:
        """Seconds the agent took to answer; GuestError when it did not within `timeout`."""
        deadline = Deadline("the guest agent to answer", timeout)
        ping = self._mux.add(_Ping)
        try:
            self._mux.send(ToGuest.PING, ping.id)
            if not ping.wait(deadline, lambda: self._mux.check(deadline)):
                raise GuestError(f"{self.name}: no answer from the guest agent ({deadline})")
        finally:
            self._mux.forget(ping.id)
        if ping.lost is not None:
            raise ping.lost
        return deadline.spent

    def close(self) -> None:
        """End what still runs, and close the stream; twice is fine."""
        self._mux.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _spawn(
        self,
        argv: tuple[Arg, ...],
        flags: ExecFlag,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        on_output: Output | None = None,
        size: tuple[int, int] = (0, 0),
    ) -> Process:
        payload = frames.exec_payload(
            [os.fsencode(a) for a in argv],
            flags,
            os.fsencode(cwd or ""),
            {os.fsencode(k): os.fsencode(v) for k, v in (env or {}).items()},
            size,
        )
        process = self._mux.add(
            lambda id_: Process(
                self._mux,
                id_,
                argv,
                window=WINDOW,
                input_credit=self._mux.input_window,
                chunk=self._mux.chunk,
                on_output=on_output,
            )
        )
        self._mux.send(ToGuest.EXEC, process.id, payload)
        return process

    def _expect_success(self, process: Process, deadline: Deadline) -> None:
        ended = process.wait(deadline)
        if ended.status != 0:
            stderr = b"".join(iter(lambda: process.read(stream=2), b""))
            result = CommandResult(
                process.argv, ended.status, ended.signal, b"", stderr, deadline.spent
            )
            raise CommandFailed(self.name, result, ended)

    def _timed_out(self, process: Process, what: str, output: _Collected) -> CommandTimeout:
        process.kill()
        stuck = ""
        try:
            process.wait(_KILL_GRACE)
        except EmuError:
            stuck = " and could not be killed: it hangs in the guest's kernel, or all of it does"
        seen = output.bytes(1) + output.bytes(2)
        return CommandTimeout(
            f"{self.name}: {what}{stuck}",
            lines=last_lines(seen),
            hint="EMU_TIMEOUT_SCALE=2 doubles every time-out on a slow machine",
        )


class _Collected:
    """The output of one command: up to `limit` bytes, or (None) the last `TAIL_LIMIT` of each."""

    def __init__(self, limit: int | None) -> None:
        self.on_full: Callable[[], None] = lambda: None
        self.full = False
        self._limit = limit
        self._size = 0
        self._parts: dict[int, list[bytes]] = {1: [], 2: []}

    def take(self, stream: int, data: bytes) -> None:
        if self.full:
            return
        self._parts[stream].append(data)
        if self._limit is None:
            self._parts[stream] = [self.bytes(stream)[-TAIL_LIMIT:]]
            return
        self._size += len(data)
        if self._size > self._limit:
            self.full = True
            self.on_full()

    def bytes(self, stream: int) -> bytes:
        return b"".join(self._parts[stream])


class _Ping:
    """A ping on its way."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.lost: ChannelLost | None = None
        self._answered = False
        self._changes = Changes()

    def wait(self, deadline: Deadline, check: Callable[[], None]) -> bool:
        return self._changes.wait(lambda: self._answered or self.lost, lambda: deadline.left, check)

    def take(self, frame: Frame) -> None:
        self._answered = True
        self._changes.notify()

    def lose(self, error: ChannelLost) -> None:
        self.lost = error
        self._changes.notify()

    def wake(self) -> None:
        self._changes.notify()


def _feed_and_wait(process: Process, input: bytes, deadline: Deadline) -> Ended:
    if input:
        with contextlib.suppress(BrokenPipeError):  # it need not read it all
            process.write(input, deadline)
        process.close_stdin()
    return process.wait(deadline)


def _words(argv: Sequence[Arg] | str) -> tuple[Arg, ...]:
    return ("/bin/sh", "-c", argv) if isinstance(argv, str) else tuple(argv)
