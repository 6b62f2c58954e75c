"""The fixtures: Xen and dom0 with a LUN, a domU, the ledger, two hosts; what builds them.

All names have a prefix, since other plugins have a `host`, too (pytest-testinfra);
`short_names` has those without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from emu.images import patched
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.modules import PATCHED
from emu.pytestplugin import coverage
from emu.pytestplugin.marks import wish_for
from emu.pytestplugin.reports import PrintedProgress
from emu.pytestplugin.stash import HOST, SECOND, STACK
from emu.rig import Ledger, RigDomu, RigHost, RigLun
from emu.rig import hosts as rig_hosts
from emu.stack.drivers import check_choice
from emu.stack.stack import Artifacts, Stack, prepare, running
from emu.stack.wish import Wish


@pytest.fixture(scope="session")
def emu_cache() -> Cache:
    """The cache that all tests share."""
    return Cache()


@pytest.fixture(scope="session")
def emu_progress(pytestconfig: pytest.Config) -> PrintedProgress:
    """Prints the progress of builds, and keeps the notes."""
    return PrintedProgress(pytestconfig)


@pytest.fixture(scope="session")
def emu_context(
    pytestconfig: pytest.Config, emu_cache: Cache, emu_progress: PrintedProgress
) -> BuildContext:
    """The context of all builds: the cache, the progress, and what `patched` drivers are."""
    counted = coverage.folder_of(pytestconfig) is not None
    drivers = replace(patched.from_environment(), counted=counted)
    return BuildContext(emu_cache, emu_progress, patched=drivers)


@pytest.fixture(scope="session")
def emu_prepared(emu_context: BuildContext) -> Callable[[Wish], Artifacts]:
    """Finds or builds what a wish boots from, once in a session."""
    return functools.lru_cache(lambda wish: prepare(wish, emu_context))


@pytest.fixture
def emu_stack(
    request: pytest.FixtureRequest,
    emu_prepared: Callable[[Wish], Artifacts],
    emu_context: BuildContext,
) -> Iterator[Stack]:
    """A running stack from its checkpoint, as the test's `stack` markers ask (or the default)."""
    wish = wish_for(request.node)
    if "emu_domu" in request.fixturenames:  # which has patched drivers: refused before it boots
        check_choice(wish, emu_context, front=PATCHED, back=PATCHED)
    with running(emu_prepared(wish), emu_context) as stack:
        request.node.stash[STACK] = stack
        with coverage.collected(request.node, stack):
            yield stack


@pytest.fixture
def emu_host(
    request: pytest.FixtureRequest, emu_stack: Stack, emu_context: BuildContext
) -> RigHost:
    """Xen and dom0 with a LUN and an idle domU."""
    made = request.node.stash[HOST] = RigHost(emu_stack, emu_context)
    return made


@pytest.fixture
def emu_two_hosts(
    request: pytest.FixtureRequest,
    emu_prepared: Callable[[Wish], Artifacts],
    emu_context: BuildContext,
) -> Iterator[tuple[RigHost, RigHost]]:
    """Two hosts joined by a network: the first has the domU and serves the LUN, the second has
    logged in to it over the network. Used in place of `emu_host`, `emu_stack` and `emu_domu`."""
    artifacts = emu_prepared(wish_for(request.node))
    with rig_hosts.two_hosts(artifacts, emu_context) as (first, second):
        request.node.stash[STACK] = first.stack
        request.node.stash[SECOND] = second.stack
        request.node.stash[HOST] = first
        with coverage.collected(request.node, first.stack, second.stack):
            yield first, second


@pytest.fixture
def emu_lun(request: pytest.FixtureRequest) -> RigLun:
    """The LUN of `emu_host`, exported and logged into; of `emu_two_hosts`, the shared one."""
    host: RigHost
    if "emu_two_hosts" in request.fixturenames:
        host, _ = request.getfixturevalue("emu_two_hosts")
    else:
        host = request.getfixturevalue("emu_host")
    return host.lun


@pytest.fixture
def emu_domu(emu_host: RigHost) -> RigDomu:
    """The domU of `emu_host` with the patched drivers at both ends, and no disk yet."""
    return emu_host.create()


@pytest.fixture
def emu_ledger(emu_host: RigHost) -> Ledger:
    """The ledger of `emu_host`: what was granted, mapped and held, before and after."""
    return Ledger(emu_host)
