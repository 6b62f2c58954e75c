"""The pytest plugin: the emulated stack as fixtures, for this project's tests and anybody's.

    def test_ring_shrinks_over_restore(host, lun):
        domu = host.create(disk=lun, ring_pages=16)
        domu.save_and_restore(max_ring_pages=2)
        assert domu.ring(lun).pages == 2

    @pytest.mark.stack(domu="pvh", kernel="lab", clock="icount")    what `host` is made of
    @pytest.mark.trouble("kernel panic")                            what a test provokes
    pytest --kernel debian-6.12                                     the same on another kernel
    pytest --driver-patches mine.patch                              the same on other drivers
    pytest --qemu patched                                           the same on another QEMU
    pytest --record                                                 what failed can be replayed

Each test starts from a checkpoint and leaves nothing behind. One that leaves trouble on a
console which it did not declare has failed. A failure shows the assertion first, then what
the consoles said; the run's directory, which it names, has the rest, with the state of the
stack. What breaks in the rig itself is an error of the rig, and never a failed test.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest

from emu.emulator import choice as emulator
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import provenance
from emu.lab.stack import Artifacts, Stack, prepare, running
from emu.lab.wish import Wish
from emu.machine.watch import Finding
from emu.pytestplugin import options, timer
from emu.pytestplugin.marks import MARKERS, declared_by, wish_for
from emu.pytestplugin.reports import (
    RIG,
    PrintedProgress,
    add_sections,
    hide_our_frames,
    is_of_the_rig,
    is_timeout,
)
from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.rig import hosts as rig_hosts

_stack = pytest.StashKey[Stack]()
_host = pytest.StashKey[RigHost]()
_second = pytest.StashKey[Stack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emu", "the emulated Xen block stack")
    group.addoption(
        "--kernel",
        metavar="NAME",
        help="the kernel of tests that name none, as `emu run` takes it; those that ask for "
        '"lab" get the lab kernel of the same release',
    )
    group.addoption(
        "--clock",
        choices=("wall", "icount"),
        help="the clock of tests that name none: the machine's, or instructions counted; "
        "two hosts always have the machine's",
    )
    group.addoption(
        "--qemu",
        metavar="QEMU",
        help=f"the QEMU of tests that name none: {', '.join(emulator.NAMES)}, or a path",
    )
    group.addoption(
        "--record",
        action="store_true",
        help="record each host, so that `emu replay` lets a failure happen again; on instruction "
        f"time, and on the QEMU {emulator.RECORDING} where none is named",
    )
    options.add_options(group)


def pytest_configure(config: pytest.Config) -> None:
    options.configure(config)
    config.pluginmanager.register(timer, "emu-timer")
    if qemu := config.getoption("--qemu"):
        # As with the drivers: the workers of `pytest -n`, and the `emu` that tests start.
        os.environ[emulator.GIVEN] = str(Path(qemu).absolute()) if "/" in qemu else qemu
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test is over when its consoles are quiet: what they say then is its doing."""
    yield
    stacks = [item.stash[key] for key in (_stack, _second) if key in item.stash]
    if stacks:
        _only_declared(stacks, declared_by(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    error = call.excinfo.value if call.excinfo else None
    if not item.config.option.fulltrace:
        hide_our_frames(call)
    stack = item.stash.get(_stack, None)
    if call.when == "call" and stack is not None and stack.machine.running:
        host = item.stash.get(_host, None)
        loaded = {end: driver for end, (driver, _) in host.loaded.items()} if host else {}
        item.user_properties += provenance.of(stack, loaded).items()
    report = yield
    if report.failed and error is not None:
        for key in (_stack, _second):
            if key in item.stash:
                add_sections(report, item.stash[key], timed_out=is_timeout(error))
    if call.when == "call" and error is not None and report.failed and is_of_the_rig(error):
        report.when = RIG  # type: ignore[assignment]
    if call.when == "teardown" and stack is not None:
        del item.stash[_stack]
        if _second in item.stash:
            del item.stash[_second]
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """An error of the rig is counted with the errors, beside what failed."""
    return ("error", "E", "RIG ERROR") if report.when == RIG else None


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


# The fixtures. Names that a person would use are short; those of the machinery say whose.


@pytest.fixture(scope="session")
def emu_cache() -> Cache:
    """The cache that everything shares."""
    return Cache()


@pytest.fixture(scope="session")
def emu_progress(pytestconfig: pytest.Config) -> PrintedProgress:
    """Prints what is done, and keeps the notes."""
    return PrintedProgress(pytestconfig)


@pytest.fixture(scope="session")
def emu_context(emu_cache: Cache, emu_progress: PrintedProgress) -> BuildContext:
    """What builds get: the cache, the progress, the lock."""
    return BuildContext(emu_cache, emu_progress)


@pytest.fixture(scope="session")
def emu_prepared(emu_context: BuildContext) -> Callable[[Wish], Artifacts]:
    """Makes the artifacts of a wish, once in a session."""
    return functools.lru_cache(lambda wish: prepare(wish, emu_context))


@pytest.fixture
def stack(
    request: pytest.FixtureRequest,
    emu_prepared: Callable[[Wish], Artifacts],
    emu_context: BuildContext,
) -> Iterator[Stack]:
    """A running stack from its checkpoint, as the markers `stack` say (the default without)."""
    wish = wish_for(request.node)
    with running(emu_prepared(wish), emu_context) as stack:
        request.node.stash[_stack] = stack
        yield stack


@pytest.fixture
def host(request: pytest.FixtureRequest, stack: Stack, emu_context: BuildContext) -> RigHost:
    """The host of `stack`: its dom0, its LUN, its domU to be created."""
    made = request.node.stash[_host] = RigHost(stack, emu_context)
    return made


@pytest.fixture
def two_hosts(
    request: pytest.FixtureRequest,
    emu_prepared: Callable[[Wish], Artifacts],
    emu_context: BuildContext,
) -> Iterator[tuple[RigHost, RigHost]]:
    """Two hosts with a network between them: the first has the domU and serves the LUN, to
    which the second has logged in over the network. In place of `host`, `stack` and `domu`."""
    with rig_hosts.two_hosts(emu_prepared(wish_for(request.node)), emu_context) as (
        here,
        there,
    ):
        request.node.stash[_stack] = here.stack
        request.node.stash[_second] = there.stack
        request.node.stash[_host] = here
        yield here, there


@pytest.fixture
def lun(request: pytest.FixtureRequest) -> RigLun:
    """The LUN of `host`, exported and logged into; with `two_hosts` the one that they share."""
    if "two_hosts" in request.fixturenames:
        here, _ = request.getfixturevalue("two_hosts")
    else:
        here = request.getfixturevalue("host")
    found: RigLun = here.lun
    return found


@pytest.fixture
def domu(host: RigHost) -> RigDomu:
    """The domU of `host` with the patched drivers at both ends, and no disk yet."""
    return host.create()


@pytest.fixture
def ledger(host: RigHost) -> Ledger:
    """The ledger of `host`: what was granted, mapped and held, before and after."""
    return Ledger(host)
