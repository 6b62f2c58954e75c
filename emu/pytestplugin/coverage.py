"""`--emu-coverage DIR`: drivers with counters, and for each test what it reached of them.

Counters are in a guest's memory: they are read before a domU is let go of (saved, powered off,
destroyed, migrated away) and at the end of a test, failed or not, before its hosts are ended. What
a guest has counted that ends in another way (a panic, `xl destroy` by the test itself) is lost.

The directory gets a file for each test (emu.suite.records). `emu coverage` makes use of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from emu.channel.channel import Channel
from emu.errors import EmuError, InputError
from emu.images.cache import Cache
from emu.pytestplugin import reports
from emu.pytestplugin.options import dest
from emu.stack.stack import Stack
from emu.suite import gcov, records, test_inputs
from emu.suite.records import Record
from emu.xen import driver_counters
from emu.xen.driver_counters import Counted

OPTION = dest("coverage")
LOST = "counters-lost"
"""The property of a test that names a guest whose counters could not be read, and why."""
_ON_DRIVERS = ("emu_stack", "emu_two_hosts")
"""The fixtures of tests that load drivers."""
_STACK_OPTIONS = (
    *("kernel", "tree", "domu-tree", "config", "xen", "clock", "qemu", "record"),
    *("driver-patches", "on", "tree-drivers", "front", "back"),
)
_counted = pytest.StashKey[list[Counted]]()
_ended = pytest.StashKey[list[pytest.TestReport]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("emu").addoption(
        "--emu-coverage-new",
        dest="emu_coverage_new",
        action="store_true",
        help="with --emu-coverage: run only tests on drivers whose file in that directory is "
        "missing, out of date, or of a failed test",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Raise UsageError for a directory that can't be written to, and without gcov."""
    if (folder := folder_of(config)) is None:
        return
    try:
        (folder / "tests").mkdir(parents=True, exist_ok=True)
        gcov.program()
    except OSError as error:
        raise pytest.UsageError(f"--emu-coverage: {folder}: {error.strerror}") from None
    except InputError as error:
        raise pytest.UsageError(f"--emu-coverage: {error}") from None


def folder_of(config: pytest.Config) -> Path | None:
    """The directory of `--emu-coverage`."""
    given = config.getoption(OPTION)
    return Path(given).absolute() if given else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folder = folder_of(config)
    if folder is None or not config.getoption("emu_coverage_new"):
        return
    on_drivers = [item for item in items if set(_ON_DRIVERS) & set(_fixtures(item))]
    records.write_chosen(folder, [item.nodeid for item in on_drivers])
    left = [item for item in on_drivers if not _is_current(item, folder)]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left


@contextlib.contextmanager
def collected(item: pytest.Item, *stacks: Stack) -> Iterator[None]:
    """Collect what the guests of these hosts count while the body runs, and at its end."""
    if folder_of(item.config) is None:
        yield
        return
    found: list[Counted] = item.stash.setdefault(_counted, [])
    was_read: set[Channel] = set()

    def take(channel: Channel) -> None:
        try:
            counted = driver_counters.read(channel)
        except EmuError as error:  # a guest that is stuck, or gone
            if channel not in was_read:
                item.user_properties.append((LOST, f"{channel.name}: {error.message}"))
            return
        was_read.add(channel)
        if counted is not None:
            found.append(counted)

    for stack in stacks:
        stack.host.leaving = take
    try:
        yield
    finally:
        for stack in stacks:
            stack.host.leaving = None
            with stack.machine.watch.after_the_fact():
                domus = [one.channel for one in stack.host.domains.values() if one.is_open]
                for channel in (*domus, stack.host.dom0):
                    take(channel)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_ended] = []
    done = yield
    if (folder := folder_of(item.config)) is not None:
        phases = item.stash[_ended]
        outcome = next((one.outcome for one in phases if one.outcome != "passed"), "passed")
        seconds = round(sum(phase.duration for phase in phases), 2)
        try:
            counted: list[Counted] = item.stash.setdefault(_counted, [])
            reached = records.reached(counted, Cache(), folder)
        except EmuError as error:
            reached, outcome = (), f"not counted: {error}"
        inputs = _inputs(item)
        records.write(Record(item.nodeid, outcome, seconds, inputs, reached), folder)
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_ended].append(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for value, tests in reports.with_property(terminalreporter, LOST):
        terminalreporter.write_line(f"counters lost in {tests}: {value}")


def _is_current(item: pytest.Item, folder: Path) -> bool:
    record = records.read(records.place(folder, item.nodeid))
    if record is None or record.outcome not in ("passed", "skipped"):
        return False
    return record.inputs == _inputs(item)


def _inputs(item: pytest.Item) -> str:
    options = {name: item.config.getoption(dest(name)) for name in _STACK_OPTIONS}
    given = {name: value for name, value in options.items() if value}
    return test_inputs.of_coverage(item.path, json.dumps(given, sort_keys=True))


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", ()))
