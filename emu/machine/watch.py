"""Everything that can end a wait: a bad line on any console, QEMU's end, the time.

One `Watch` belongs to a machine. Consoles report what `verdict` finds in their lines,
whether somebody waits or not; every wait, on whatever floor, goes through the watch and
ends at once, with the trouble's name, when the machine is in trouble.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from emu.deadline import Deadline
from emu.errors import GuestError, RigError
from emu.machine import known_reports
from emu.machine.known_reports import KnownReport
from emu.machine.verdict import KNOWN_NAMES

T = TypeVar("T")

LINES_BEFORE = 6
LINES_AFTER = 24
LAST_LINES = 15
_VERSION_WITHIN = 2.0
"""Seconds for the lines after a finding that may be known: the next ones name the kernel."""
_QUIET = 0.3
"""Seconds without a byte after which a console counts as quiet."""
_SETTLE = 3.0
"""Seconds to wait at most for a console to become quiet."""


@dataclass(frozen=True)
class Finding:
    """Trouble on a console: its `name` (of verdict.BAD_PATTERNS), the line, when and where.

    `guest` printed it ("xen", "dom0", a domU's name), `console` is where it was read: dom0's
    kernel prints to Xen's console as well. `time` is in seconds since the machine's start,
    `number` counts the console's lines.
    """

    name: str
    guest: str
    console: str
    line: str
    time: float
    number: int


class GuestTrouble(GuestError):
    """A guest (or Xen) reported trouble, which is `finding`."""

    def __init__(self, message: str, finding: Finding, lines: tuple[str, ...]) -> None:
        super().__init__(message, lines=lines)
        self.finding = finding


class WaitTimeout(GuestError):
    """What was awaited did not come before its deadline."""


@dataclass(frozen=True)
class _Undecided:
    """A finding that fits a known report, whose kernel's version was not printed yet."""

    finding: Finding
    known: KnownReport
    console: Watched
    until: float
    """Seconds since the machine's start; without a version by then it is trouble."""


class Watched(Protocol):
    """What the watch needs of a console."""

    name: str

    def around(self, number: int, before: int, after: int) -> list[str]: ...
    def last_lines(self, count: int) -> list[str]: ...
    def idle(self) -> float: ...


@dataclass
class _Allowance:
    names: frozenset[str]
    guest: str | None
    findings: list[Finding] = field(default_factory=list)

    def covers(self, finding: Finding) -> bool:
        return finding.name in self.names and self.guest in (None, finding.guest)


class Watch:
    """The findings of one machine's consoles, and all waiting for that machine."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._consoles: list[Watched] = []
        self._findings: list[Finding] = []
        self._seen: deque[Finding] = deque(maxlen=64)
        self._failure: RigError | None = None
        self._allowances: list[_Allowance] = []
        self._after_the_fact = 0
        self._undecided: list[_Undecided] = []
        self._known: list[tuple[KnownReport, Finding]] = []

    # For the reactor.

    def now(self) -> float:
        """Seconds since the machine's start."""
        return time.monotonic() - self.started

    def add(self, console: Watched) -> None:
        """Watch one more console."""
        with self._changed:
            self._consoles.append(console)

    def report(self, finding: Finding) -> None:
        """A console found trouble."""
        with self._changed:
            if self._is_copy(finding):
                return
            self._seen.append(finding)
            if undecided := self._fits_known(finding):
                self._undecided.append(undecided)
            else:
                self._take(finding)
            self._changed.notify_all()
        self._wake_listeners()

    def _take(self, finding: Finding) -> None:
        for allowance in self._allowances:
            if allowance.covers(finding):
                allowance.findings.append(finding)
                return
        self._findings.append(finding)

    def _fits_known(self, finding: Finding) -> _Undecided | None:
        for console in self._consoles:
            if console.name == finding.console:
                before = console.around(finding.number, known_reports.LINES_BEFORE, -1)
                if known := known_reports.candidate(finding.line, before):
                    return _Undecided(finding, known, console, self.now() + _VERSION_WITHIN)
        return None

    def _decide(self) -> None:
        """Sort out undecided findings, as far as their kernels' versions were printed."""
        if not self._undecided:
            return
        with self._changed:
            undecided, self._undecided = self._undecided, []
            for one in undecided:
                number = one.finding.number
                after = one.console.around(number, -1, known_reports.LINES_AFTER)
                listed = known_reports.on_listed_kernel(one.known, after)
                if listed is None and self.now() < one.until:
                    self._undecided.append(one)
                elif listed:
                    self._known.append((one.known, one.finding))
                else:
                    self._take(one.finding)

    def _is_copy(self, finding: Finding) -> bool:
        # dom0's kernel writes every line to both of its consoles.
        return any(
            (seen.name, seen.guest, seen.line) == (finding.name, finding.guest, finding.line)
            and seen.console != finding.console
            for seen in self._seen
        )

    def fail(self, error: RigError) -> None:
        """The machine itself has ended or is stuck: all waits raise `error`, the first of them."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._wake_listeners()

    def _wake_listeners(self) -> None:
        # Without the lock: a listener has locks of its own, and calls `check` with none.
        if self.in_trouble:
            for wake in tuple(self._listeners):
                wake()

    def notify(self) -> None:
        """Something changed that a wait may be for."""
        with self._changed:
            self._changed.notify_all()

    # For everybody else.

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings that were not allowed, in order, without the known kernel reports."""
        with self._changed:
            self._decide()
            return tuple(self._findings)

    @property
    def known(self) -> tuple[tuple[KnownReport, Finding], ...]:
        """The known kernel reports that came, in order: they are no trouble."""
        with self._changed:
            self._decide()
            return tuple(self._known)

    @property
    def in_trouble(self) -> bool:
        """Whether the next wait would end at once."""
        self._decide()
        findings = bool(self._findings) and not self._after_the_fact
        return findings or self._failure is not None

    def check(self, deadline: Deadline | None = None) -> None:
        """Raise what is wrong with the machine (GuestTrouble, RigError), if anything is."""
        if not self.in_trouble:
            return
        if self._after_the_fact:
            if self._failure is not None:
                raise self._failure
            return
        if not self._findings:
            self.settle()  # its consoles may still show why QEMU ended
        if self._findings:
            raise self._trouble(self._findings[0], deadline)
        assert self._failure is not None
        failure = self._failure
        message = failure.message + (f" while waiting for {deadline}" if deadline else "")
        raise type(failure)(
            message, hint=failure.hint, lines=failure.lines or self._last_lines()
        ) from failure

    def on_trouble(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called, on any thread, when `check` begins to raise; returns how to stop.

        It is for waits that do not go through `wait`, such as those for a guest's command.
        """
        with self._changed:
            self._listeners.append(wake)

        def stop() -> None:
            with self._changed:
                self._listeners.remove(wake)

        return stop

    def wait(
        self,
        awaited: Callable[[], T | None] | threading.Event | concurrent.futures.Future[T],
        what: str,
        timeout: float,
        console: str | None = None,
    ) -> T:
        """Wait until `awaited` is set, done, or returns something other than None or False.

        `timeout` is in seconds before scaling. `what` and `console` name the wait in errors.
        Raises GuestTrouble, RigError (QEMU ended) or WaitTimeout; the future's own error.
        """
        deadline = Deadline(what, timeout)
        if isinstance(awaited, concurrent.futures.Future):
            awaited.add_done_callback(lambda _: self.notify())
        poll = 0.05 if isinstance(awaited, threading.Event) else 0.5
        while True:
            done, value = _look(awaited)
            if done:
                return value
            self.check(deadline)
            if deadline.passed:
                raise self.timed_out(deadline, console)
            with self._changed:
                # Again, with the lock: or a change before the sleep would be missed.
                if not self.in_trouble and not _look(awaited)[0]:
                    self._changed.wait(min(poll, deadline.left))

    def sleep_until_change(self, ready: Callable[[], bool], seconds: float) -> None:
        """Sleep until `ready()`, trouble, or the end of `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self.in_trouble or ready(), seconds)

    def timed_out(self, deadline: Deadline, console: str | None = None) -> WaitTimeout:
        """The error for a deadline that passed, with the last lines of the console."""
        lines = self._last_lines(console)
        where = f"{console}: " if console else ""
        tail = "; last lines:" if lines else "; it printed nothing"
        return WaitTimeout(
            f"{where}waited {deadline.seconds:.0f} s for {deadline.what}{tail}",
            lines=lines,
            hint="EMU_TIMEOUT_SCALE=2 doubles every time-out on a slow machine",
        )

    @contextmanager
    def allow(self, *names: str, guest: str | None = None) -> Iterator[list[Finding]]:
        """Inside the block, these findings are no trouble; yields the list of those seen."""
        unknown = set(names) - KNOWN_NAMES
        if unknown:
            raise ValueError(f"no bad pattern is called {sorted(unknown)}")
        allowance = _Allowance(frozenset(names), guest)
        with self._changed:
            self._allowances.append(allowance)
        try:
            yield allowance.findings
            self.settle()
        finally:
            with self._changed:
                self._allowances.remove(allowance)

    @contextmanager
    def after_the_fact(self) -> Iterator[None]:
        """Inside the block, findings end no wait: for examining a machine that is in trouble."""
        self._after_the_fact += 1
        try:
            yield
        finally:
            self._after_the_fact -= 1
            self._wake_listeners()

    @contextmanager
    def expect_finding(
        self, *names: str, guest: str | None = None, timeout: float = 10.0
    ) -> Iterator[list[Finding]]:
        """Like `allow`, but one of the findings must come, within `timeout` after the block.

        Raises WaitTimeout when none came.
        """
        with self.allow(*names, guest=guest) as seen:
            yield seen
            what = " or ".join(names) + " (expected)"
            self.wait(lambda: seen or None, what, timeout, guest)

    def settle(self) -> None:
        """Wait (0.3 s, 3 s at most) until no console prints any more."""
        end = time.monotonic() + _SETTLE
        while time.monotonic() < end:
            self._decide()
            idle = min((console.idle() for console in self._consoles), default=_QUIET)
            if idle >= _QUIET and not self._undecided:
                return
            time.sleep(max(_QUIET - idle, 0.0) + 0.01)

    def _trouble(self, finding: Finding, deadline: Deadline | None) -> GuestTrouble:
        # What a dying kernel prints next (registers, call trace) belongs to the message.
        self.settle()
        lines: list[str] = []
        for console in self._consoles:
            if console.name == finding.console:
                lines = console.around(finding.number, LINES_BEFORE, LINES_AFTER)
        when = f"while waiting for {deadline}" if deadline else f"{finding.time:.1f} s after start"
        return GuestTrouble(
            f"{finding.guest}: {finding.name} {when}", finding, tuple(lines or [finding.line])
        )

    def _last_lines(self, console: str | None = None) -> list[str]:
        found: list[str] = []
        for each in self._consoles:
            if console in (None, each.name):
                prefix = "" if console else f"{each.name} | "
                found += [prefix + line for line in each.last_lines(LAST_LINES)]
        return found


def _look(
    awaited: Callable[[], T | None] | threading.Event | concurrent.futures.Future[T],
) -> tuple[bool, T]:
    value: object
    if isinstance(awaited, threading.Event):
        done, value = awaited.is_set(), True
    elif isinstance(awaited, concurrent.futures.Future):
        done = awaited.done()
        value = awaited.result() if done else None
    else:
        value = awaited()
        done = value is not None and value is not False
    return done, value  # type: ignore[return-value]
