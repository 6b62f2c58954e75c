"""The emulated stack as fixtures: `stack` is a running host with a LUN and an idle domU.

    @pytest.mark.stack(domu="pvh", kernel="lab", clock="icount")    what `stack` is made of
    @pytest.mark.trouble("kernel panic")                            what a test provokes
    pytest tests/system --kernel debian-6.12                        the same on another kernel

A test that leaves trouble behind on a console which it did not declare has failed. Failures
show the last lines of all consoles and name the run's directory.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from emu_command import Warm
from ends import Ends

from emu.images import agent
from emu.images.cache import Cache
from emu.images.kernels import spec
from emu.images.modules import driver_source
from emu.images.packages import Lock
from emu.lab.run import driver_for, drivers_for
from emu.lab.stack import Inputs, Stack, Wish, prepare, running
from emu.machine.rundir import RunDir
from emu.progress import Progress
from emu.xen.domain import DomuConfig

HERE = Path(__file__).parent
SHOWN_LINES = 40

_run = pytest.StashKey[RunDir]()
_passed = pytest.StashKey[bool]()


class Told(Progress):
    """Prints what it is told, for pytest to show when a test fails; keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        print(f"{what} …")
        yield

    def note(self, line: str) -> None:
        print(line)
        self.notes.append(line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)
    if not _debug_is_asked_for(config):
        # Deselected, not skipped: pytest's last line counts them.
        left = [item for item in items if item.get_closest_marker("debug")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


def _debug_is_asked_for(config: pytest.Config) -> bool:
    """Two more kernels are built only for somebody who names the marker, a file or a test."""
    named = [Path(argument).name for argument in config.args]
    return any("debug" in each for each in [config.option.markexpr, config.option.keyword, *named])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    if report.failed and (run := item.stash.get(_run, None)) is not None:
        report.sections.append((f"consoles of {run.path}", _last_lines(run.log("console"))))
    return report


def _last_lines(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"no log: {error}"
    return "\n".join(lines[-SHOWN_LINES:])


@pytest.fixture(scope="session")
def cache() -> Cache:
    """The cache that everything shares; tests that damage one make themselves a `warm`."""
    return Cache()


@pytest.fixture(scope="session")
def progress() -> Told:
    return Told()


@pytest.fixture(scope="session")
def prepared(cache: Cache, progress: Told) -> Callable[[Wish], Inputs]:
    """Makes the inputs of a wish, once in a session."""
    return functools.lru_cache(lambda wish: prepare(wish, cache, progress))


@pytest.fixture(scope="session")
def inputs(prepared: Callable[[Wish], Inputs]) -> Inputs:
    """What the default stack boots from: debian kernel, PV domU, wall time."""
    return prepared(Wish())


@pytest.fixture
def stack(
    request: pytest.FixtureRequest,
    prepared: Callable[[Wish], Inputs],
    cache: Cache,
    progress: Told,
) -> Iterator[Stack]:
    """A running stack from its checkpoint, as the markers `stack` say (the default without).

    Where several name the same thing the nearest counts: one on a case of `parametrize` goes
    before those on the function (which pytest lists first).
    """
    case = getattr(request.node, "callspec", None)
    asked: dict[str, object] = {}
    for marker in (*(case.marks if case else ()), *request.node.iter_markers("stack")):
        if marker.name == "stack":
            asked = {**marker.kwargs, **asked}
    kernel = kernel_for(asked.pop("kernel", None), request.config.getoption("--kernel"))
    wish = wish_of(**asked, **kernel)
    with running(prepared(wish), cache, progress) as stack:
        request.node.stash[_run] = stack.machine.rundir
        yield stack
        if request.node.stash.get(_passed, False):
            _only_declared(stack, request.node)


@pytest.fixture
def ends(stack: Stack, cache: Cache) -> Ends:
    """Both ends' drivers on `stack`."""
    made = Ends(
        stack, cache, lambda end, which: driver_for(end, which, stack.inputs, cache, Progress())
    )
    made.listen()
    return made


def kernel_for(asked: object, option: str | None) -> dict[str, object]:
    """The kernel of a stack, as an argument of `Wish`: what a test asks for under `--kernel`.

    A full name ("lab-6.1") is what the test is about, and stays.
    """
    if option is None:
        return {} if asked is None else {"kernel": asked}
    if asked == "lab":
        return {"kernel": f"lab-{Wish(kernel=option).kernel_name.partition('-')[2]}"}
    return {"kernel": option if asked is None else asked}


def wish_of(
    domu: str = "pv",
    domu_memory: int = 256,
    domu_vcpus: int = 1,
    kernel_options: str = "",
    grant_frames: int | None = None,
    **wish: object,
) -> Wish:
    """A wish from a marker's arguments: the domU's, and those of `Wish`."""
    config = DomuConfig(
        kind=domu,
        memory=domu_memory,
        vcpus=domu_vcpus,
        kernel_options=kernel_options,
        grant_frames=grant_frames,
    )
    return replace(Wish(domu=config), **wish)  # type: ignore[arg-type]


def _only_declared(stack: Stack, node: pytest.Item) -> None:
    marker = node.get_closest_marker("trouble")
    declared = set(marker.args) if marker else set()
    stack.machine.watch.settle()
    seen = stack.machine.watch.findings
    if {finding.name for finding in seen} - declared:
        pytest.fail(f"undeclared trouble on a console: {seen}")
    if missing := declared - {finding.name for finding in seen}:
        pytest.fail(f"the test was to provoke {missing}, but did not")


@pytest.fixture(scope="session")
def everything(inputs: Inputs, cache: Cache, progress: Told) -> Cache:
    """The cache with all that `emu run` needs, the checkpoint too."""
    drivers_for(inputs, cache, progress)
    with running(inputs, cache, progress):
        pass
    return cache


@pytest.fixture
def entries(inputs: Inputs, everything: Cache) -> dict[str, Path]:
    """The entries of the cache that `emu run` uses, by kind."""
    quiet = Progress()
    checkpoint = everything.find("checkpoint", inputs.checkpoint_key())
    assert checkpoint is not None
    return {
        inputs.kernel.root.parent.name: inputs.kernel.root,
        "driver-source": driver_source(spec(inputs.kernel.name), Lock.load(), everything, quiet),
        "drivers": driver_for("front", "patched", inputs, everything, quiet).path.parent,
        "guest-programs": agent.build(everything, quiet).agent.parent,
        "guests": inputs.guests.root,
        "checkpoint": checkpoint,
    }


@pytest.fixture
def warm(everything: Cache, tmp_path: Path) -> Iterator[Warm]:
    """Makes caches of a test's own that hold what the common cache does; see `Warm`."""
    made = Warm(everything.root, tmp_path)
    yield made
    with contextlib.ExitStack() as ended:
        for command in made.commands:
            ended.callback(command.end)
