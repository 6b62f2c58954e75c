"""What a failure shows: the test's own lines, the consoles, the state of the stack."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emu import paths
from emu.channel.channel import ChannelLost
from emu.errors import EmuError, GuestError, InputError, RigError
from emu.lab import provenance, statedump
from emu.progress import Progress
from emu.pytestplugin.timer import untimed
from emu.rig import RigHost
from emu.stack.stack import Stack

SHOWN_LINES = 40
KNOWN = "known-report"
"""The property that names a known kernel report."""
WARNING = "compiler-warning"
"""The property that names what the compiler says of the drivers of a test."""
RIG = "rig"
"""The phase that a report names when the rig broke: pytest counts all but "call" as errors."""
_SHOWN = pytest.StashKey[set[str]]()
"""The compiler's warnings that this session has shown."""
_ANSWERS_WITHIN = 2.0
"""Seconds for QEMU to say that it still runs."""
_MEANWHILE = (Exception, asyncio.CancelledError)
"""What a question to a QEMU that ends meanwhile may raise, from whatever floor it was on."""


class PrintedProgress(Progress):
    """Prints to the test's captured output, which pytest shows if it fails; keeps the notes.

    Stages are work that many tests share (a kernel, a checkpoint, waiting for a process that
    makes one) and may take longer than a test: they do not count against its time limit.
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
    """Whether the rig broke, which says nothing about what is under test."""
    return isinstance(error, RigError | InputError) and not isinstance(error, GuestError)


def is_of_the_stack(error: BaseException) -> bool:
    """Whether what is under test broke, or is not as it should be."""
    failures = (EmuError, AssertionError, pytest.fail.Exception)
    return isinstance(error, failures) and not is_of_the_rig(error)


def is_timeout(error: BaseException) -> bool:
    """Whether pytest-timeout ended the test (it calls pytest.fail from its timer)."""
    return isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout")


def killed_qemu(stack: Stack) -> RigError | None:
    """The error of a QEMU that somebody else ended, the OOM killer for one; else None."""
    machine = stack.machine
    if machine.running:
        # One that was killed just now does not answer, and is reaped meanwhile.
        with contextlib.suppress(*_MEANWHILE):
            machine.qmp("query-status", timeout=_ANSWERS_WITHIN)
    if machine.killed_by is None:
        return None
    return RigError(f"QEMU was ended by signal {machine.killed_by}")


def blame_qemu(call: pytest.CallInfo[None], stacks: Iterable[Stack]) -> None:
    """Let a test that failed as its QEMU ended have failed of that, whatever it noticed."""
    assert call.excinfo is not None
    noticed = call.excinfo.value
    if isinstance(noticed, pytest.skip.Exception):
        return
    for stack in stacks:
        cause = killed_qemu(stack)
        if cause is None and isinstance(noticed, ChannelLost) and not stack.machine.running:
            cause = _end_of(stack)
        if cause is not None:
            cause.__cause__ = noticed
            call.excinfo = pytest.ExceptionInfo.from_exception(
                cause.with_traceback(noticed.__traceback__)
            )
            return


def _end_of(stack: Stack) -> RigError | None:
    """What a guest printed before its machine ended, or how that ended."""
    try:
        stack.machine.watch.check()
    except RigError as error:
        return error
    return None


def hide_our_frames(call: pytest.CallInfo[None]) -> None:
    """Leave the test's frames in a traceback, not the thirty of ours below them.

    pytest skips frames whose globals have `__tracebackhide__`.
    """
    if call.excinfo is None or not isinstance(call.excinfo.value, EmuError):
        return
    ours = Path(paths.__file__).parent
    for entry in call.excinfo.traceback:
        if ours in Path(entry.path).parents:
            entry.frame.f_globals["__tracebackhide__"] = _is_ours


def _is_ours(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return isinstance(error.value, EmuError)


def add_provenance(item: pytest.Item, stack: Stack | None, host: RigHost | None) -> None:
    """Put the versions and hashes of what ran into a test's properties, while its QEMU runs.

    Never raises, as `add_sections`: QEMU may end at any moment.
    """
    item.user_properties += [(WARNING, str(one)) for one in (host.warnings if host else ())]
    if stack is None or not stack.machine.running:
        return
    loaded = {end: driver for end, (driver, _) in host.loaded.items()} if host else {}
    try:
        item.user_properties += provenance.of(stack, loaded).items()
    except _MEANWHILE as error:
        item.user_properties.append(("provenance", f"unknown: {error}"))


def add_sections(report: pytest.TestReport, stack: Stack, timed_out: bool) -> None:
    """Add the consoles' last lines and the state dump: its files, after a time-out its text.

    Never raises: pytest takes an error in a report for one of its own, and ends the session.
    """
    try:
        _add_sections(report, stack, timed_out)
    except Exception:
        report.sections.append(("state of the stack", traceback.format_exc()))


def _add_sections(report: pytest.TestReport, stack: Stack, timed_out: bool) -> None:
    run = stack.machine.rundir
    run.keep(report.nodeid)
    for known, finding in stack.machine.watch.known:
        text = f"{finding.guest}: {finding.line}\n{known.reason}"
        report.sections.append((f"known kernel report: {known.name}", text))
    report.sections.append((f"consoles of {run.path}", last_lines(run.log("console"))))
    dump = statedump.collect(stack, run)
    if timed_out:
        for part in dump:
            report.sections.append((part.title, part.tail(SHOWN_LINES)))
    else:
        paths = "\n".join(str(part.path) for part in dump)
        report.sections.append(("state of the stack", paths or "none"))


def add_known(item: pytest.Item, stacks: Iterable[Stack]) -> None:
    """Name the known kernel reports of a test's consoles in its properties, and in their log."""
    for stack in stacks:
        for known, finding in stack.machine.watch.known:
            found = (KNOWN, f"{known.name} (Linux {', '.join(known.kernels)}, {finding.guest})")
            if found not in item.user_properties:
                item.user_properties.append(found)
                stack.machine.remark(f"known kernel report: {known.name}: {known.reason}")


def show_known(terminal: pytest.TerminalReporter) -> None:
    """One line for each known kernel report, with the number of tests that met it."""
    for value, count in with_property(terminal, KNOWN):
        terminal.write_line(f"known kernel report in {count}: {value}")


def show_replaced(terminal: pytest.TerminalReporter) -> None:
    """One line for each choice of packages in place of locked ones, with the number of tests."""
    for value, count in with_property(terminal, provenance.REPLACED):
        terminal.write_line(f"{count} ran with packages in place of locked ones: {value}")


def show_warnings(terminal: pytest.TerminalReporter) -> None:
    """One line for each warning of the compiler about the patches that the tests ran with."""
    for value, count in with_property(terminal, WARNING):
        terminal.write_line(f"the compiler warns of {value} ({count} ran with it)")


def show_first_warnings(config: pytest.Config, report: pytest.TestReport) -> None:
    """Say what the compiler said as soon as the first test that ran with it has ended."""
    shown = config.stash.setdefault(_SHOWN, set())
    fresh = [value for name, value in report.user_properties if name == WARNING]
    for value in sorted(set(map(str, fresh)) - shown):
        shown.add(value)
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            if config.get_terminal_writer().width_of_current_line:
                terminal.line("")
            terminal.write_line(f"the compiler warns of {value}")


def with_property(terminal: pytest.TerminalReporter, wanted: str) -> Iterator[tuple[str, str]]:
    """The values of a property, and how many tests have each ("3 tests")."""
    tests: dict[str, set[str]] = {}
    for reports in terminal.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == wanted:
                    tests.setdefault(str(value), set()).add(report.nodeid)
    for value, nodes in sorted(tests.items()):
        yield value, f"{len(nodes)} test" + ("s" if len(nodes) > 1 else "")


def last_lines(log: Path, count: int = SHOWN_LINES) -> str:
    """The last lines of a log, or why there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"no log: {error}"
    return "\n".join(lines[-count:])
