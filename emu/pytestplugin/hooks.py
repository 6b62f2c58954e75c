"""The pytest plugin: the emulated stack as fixtures, for this project's tests and anybody's.

    def test_ring_shrinks_over_restore(emu_host, emu_lun):
        domu = emu_host.create(disk=emu_lun, ring_pages=16)
        domu.save_and_restore(max_ring_pages=2)
        assert domu.ring(emu_lun).pages == 2

    @pytest.mark.stack(domu="pvh", kernel="lab", clock="icount")    what the host is made of
    @pytest.mark.trouble("kernel panic")                            what the test provokes
    pytest -m drivers                                               the tests of the drivers alone
    pytest --emu-kernel debian-6.12                                 on another kernel
    pytest --emu-tree ~/linux                                       on the kernel of a tree
    pytest --emu-xen 4.20                                           on another Xen
    pytest --emu-driver-patches mine.patch                          on other drivers
    pytest --emu-qemu patched                                       on another QEMU
    pytest --emu-record                                             failures can be replayed

Each test starts from a checkpoint and leaves nothing behind. A test fails if a console reports
trouble that the test did not declare. A failure shows the assertion first, then the consoles;
the run's directory, which it names, has the rest, with the state of the stack. What breaks in
the rig itself is an error of the rig, never a failed test.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest

from emu.machine.watch import Finding
from emu.pytestplugin import timer
from emu.pytestplugin.marks import MARKERS, declared_by, mark_drivers
from emu.pytestplugin.reports import (
    RIG,
    add_known,
    add_provenance,
    add_sections,
    blame_qemu,
    hide_our_frames,
    is_of_the_rig,
    is_of_the_stack,
    is_timeout,
    killed_qemu,
    show_first_warnings,
    show_known,
    show_replaced,
    show_warnings,
)
from emu.pytestplugin.stash import HOST, SECOND, STACK, forget
from emu.stack.stack import Stack

pytest_plugins = (
    "emu.pytestplugin.options",
    "emu.pytestplugin.collected",
    "emu.pytestplugin.fixtures",
    "emu.pytestplugin.coverage",
)
"""Loaded with this module, which is the entry point."""


class _AtOnce:
    """What is shown as reports come; with `-n` those of the workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        show_first_warnings(self._config, report)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(timer, "emu-timer")
    config.pluginmanager.register(_AtOnce(config), "emu-at-once")
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(tryfirst=True)  # `-m` selects by it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark_drivers(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test is over when its consoles are quiet: it answers for what they print until then."""
    yield
    stacks = _stacks(item)
    if stacks:
        _only_declared(stacks, declared_by(item))
    for stack in stacks:
        if (killed := killed_qemu(stack)) is not None:
            raise killed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # A timer that ends while a failure's evidence is gathered would end the whole session.
    with timer.untimed(item.config):
        return (yield from _made_report(item, call))


def _made_report(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    stacks = _stacks(item)
    if call.excinfo is not None:
        blame_qemu(call, stacks)
    error = call.excinfo.value if call.excinfo else None
    if not item.config.option.fulltrace:
        hide_our_frames(call)
    # Once its host is up, what fails in a test's set-up is what its fixtures do with the drivers.
    failed_early = (
        call.when == "setup" and HOST in item.stash and error is not None and is_of_the_stack(error)
    )
    if call.when == "call" or failed_early:
        add_provenance(item, item.stash.get(STACK, None), item.stash.get(HOST, None))
    if call.when != "setup" or failed_early:
        add_known(item, stacks)
    report = yield
    if report.failed and error is not None:
        for each in stacks:
            add_sections(report, each, timed_out=is_timeout(error))
    if failed_early and report.failed:
        report.sections.insert(0, ("when", "in the test's set-up, with its host up"))
        report.when = "call"
    elif call.when == "call" and error is not None and report.failed and is_of_the_rig(error):
        report.when = RIG  # type: ignore[assignment]
    if call.when == "teardown":
        forget(item.stash)
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """An error of the rig is counted with the errors, beside what failed."""
    return ("error", "E", "RIG ERROR") if report.when == RIG else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    show_known(terminalreporter)
    show_replaced(terminalreporter)
    show_warnings(terminalreporter)


def _stacks(item: pytest.Item) -> list[Stack]:
    return [item.stash[key] for key in (STACK, SECOND) if key in item.stash]


def _only_declared(stacks: Sequence[Stack], declared: frozenset[str]) -> None:
    __tracebackhide__ = True
    seen: list[Finding] = []
    for stack in stacks:
        stack.machine.watch.settle()
        seen += stack.machine.watch.findings
    if {finding.name for finding in seen} - declared:
        pytest.fail(f"undeclared trouble on a console: {seen}")
    if missing := declared - {finding.name for finding in seen}:
        pytest.fail(f"the test was to provoke {set(missing)}, but did not")
