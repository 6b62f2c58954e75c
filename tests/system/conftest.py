"""What the system tests share, beside the fixtures of emu.pytestplugin."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emu_command import Warm

from emu.images import agent, handler
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_source import driver_source
from emu.images.kernel_specs import spec
from emu.images.patched import from_environment
from emu.pytestplugin.reports import PrintedProgress
from emu.pytestplugin.short_names import *  # noqa: F403
from emu.stack.drivers import driver_for, drivers_for
from emu.stack.stack import Artifacts, running
from emu.stack.wish import Wish

HERE = Path(__file__).parent
FIRST = "test_plugin.py"
"""The file whose tests run first: its set-up takes a minute, once for all workers. Left to the
end of a run, when workers take tests from one another, all of them would wait for it."""


ABOUT_THE_RIG = ("qemu", "rig")
"""Folders whose tests use hosts, but are not about the drivers."""


def pytest_itemcollected(item: pytest.Item) -> None:
    if HERE in item.path.parents and item.path.parent.name in ABOUT_THE_RIG:
        item.add_marker(pytest.mark.rig)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)
    # Deselected, not skipped: pytest's last line counts them.
    hidden = {name for name in ("debug", "long", "qemu") if not _asked_for(config, name)}
    left = [item for item in items if any(map(item.get_closest_marker, hidden))]
    chosen = [item for item in items if item not in left]
    items[:] = sorted(chosen, key=lambda item: item.path.name != FIRST)
    config.hook.pytest_deselected(items=left)


def _asked_for(config: pytest.Config, marker: str) -> bool:
    """What takes long runs only if its marker is named, or a test.

    For "debug" two more kernels are built, for "qemu" a QEMU: naming a file of such tests will
    do, too.
    """
    named = [Path(argument).name for argument in config.args]
    words = [
        config.option.markexpr,
        *([config.option.keyword, *named] if marker in ("debug", "qemu") else []),
    ]
    return any(marker in word for word in words) or any("::" in name for name in named)


@pytest.fixture(scope="session")
def cache(emu_cache: Cache) -> Cache:
    """The cache that everything shares; tests that damage one make themselves a `warm`."""
    return emu_cache


@pytest.fixture(scope="session")
def context(emu_context: BuildContext) -> BuildContext:
    return emu_context


@pytest.fixture(scope="session")
def progress(emu_progress: PrintedProgress) -> PrintedProgress:
    return emu_progress


@pytest.fixture(scope="session")
def prepared(emu_prepared: Callable[[Wish], Artifacts]) -> Callable[[Wish], Artifacts]:
    """Makes the artifacts of a wish, once in a session."""
    return emu_prepared


@pytest.fixture(scope="session")
def artifacts(prepared: Callable[[Wish], Artifacts]) -> Artifacts:
    """What the default stack boots from: debian kernel, PV domU, wall time."""
    return prepared(Wish())


@pytest.fixture(scope="session")
def everything(artifacts: Artifacts, context: BuildContext, cache: Cache) -> Cache:
    """The cache with all that `emu run` needs, the checkpoint too."""
    drivers_for(artifacts, context)
    with running(artifacts, context):
        pass
    return cache


@pytest.fixture
def entries(artifacts: Artifacts, everything: Cache) -> dict[str, Path]:
    """The entries of the cache that `emu run` uses, by kind."""
    checkpoint = everything.find("checkpoint", artifacts.checkpoint_key())
    assert checkpoint is not None
    qemu = Path(artifacts.spec.qemu)
    return {
        # One of ours: <cache>/qemu/<key>/bin/qemu-system-x86_64.
        **({"qemu": qemu.parents[1]} if everything.root in qemu.parents else {}),
        artifacts.kernel.root.parent.name: artifacts.kernel.root,
        # A tree has its drivers itself.
        **(
            {"driver-source": driver_source(spec(artifacts.kernel.name), BuildContext(everything))}
            if artifacts.kernel.tree is None
            else {}
        ),
        "drivers": driver_for(
            "front", "patched", artifacts, BuildContext(everything, patched=from_environment())
        ).path.parent,
        "guest-programs": agent.build(BuildContext(everything)).agent.parent,
        "lun-server": handler.build(artifacts.xen, BuildContext(everything)).parent,
        "guests": artifacts.guests.root,
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
