"""The debug kernels' tools find what they are for, and the watch reports it by its name.

That a test finds nothing on these kernels means something only because of these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import debugging
import guest_modules
import pytest

from emu.channel.channel import Channel
from emu.images.context import BuildContext
from emu.images.kernels import Kernel
from emu.stack.stack import Stack

pytestmark = pytest.mark.debug

TROUBLE = [
    pytest.param("locks", "lockdep report", id="locks in two orders"),
    pytest.param("sleep", "sleep in atomic context", id="sleep under a spinlock"),
    pytest.param("free", "slab corruption", id="write to a freed object"),
    pytest.param("beyond", "slab corruption", id="write beyond an object"),
    pytest.param("page", "page corruption", id="write to a freed page"),
]


@pytest.fixture(scope="session")
def trouble(context: BuildContext) -> Callable[[Kernel], Path]:
    """Makes the module that does one wrong thing, once for each kernel."""

    @functools.lru_cache
    def made(kernel: Kernel) -> Path:
        return guest_modules.build("trouble", kernel, context)

    return made


def load(channel: Channel, module: Path, what: str) -> None:
    channel.put(module, "/tmp/trouble.ko")
    channel.run(["insmod", "/tmp/trouble.ko", f"what={what}"], timeout=60)


@pytest.mark.stack(kernel="lab-debug")
@pytest.mark.parametrize(("what", "name"), TROUBLE)
def test_report_in_dom0_is_found(
    stack: Stack, trouble: Callable[[Kernel], Path], what: str, name: str
) -> None:
    module = trouble(stack.artifacts.kernel)
    watch = stack.machine.watch
    # SLUB prints its report under a lock, which lockdep does not like.
    printed = ["lockdep report"] if name == "slab corruption" else []
    with watch.allow(*printed), watch.expect_finding(name, guest="dom0"):
        load(stack.host.dom0, module, what)


@pytest.mark.stack(kernel="lab-debug")
def test_leaks_are_found(stack: Stack, trouble: Callable[[Kernel], Path]) -> None:
    module = trouble(stack.artifacts.kernel)
    debugging.forget_leaks(stack.host.dom0)
    assert debugging.leaks(stack.host.dom0) == ""
    load(stack.host.dom0, module, "leak")
    assert sum(debugging.held(stack.host.dom0, "trouble").values()) == 8
    with stack.machine.watch.expect_finding("kernel memory leak", guest="dom0"):
        found = debugging.leaks(stack.host.dom0)
    # One or two may still be in a register or on a stack, where no code reads them again.
    assert found.count("unreferenced object") >= 6
    assert "[trouble]" in found


@pytest.mark.stack(kernel="lab-debug", domu_kernel="lab-kasan", domu="pvh")
@pytest.mark.parametrize("what", ["free", "beyond", "page"])
def test_kasan_report_in_the_domu_is_found(
    stack: Stack, trouble: Callable[[Kernel], Path], what: str
) -> None:
    module = trouble(stack.artifacts.domu_kernel)
    with stack.machine.watch.expect_finding("KASAN report", guest="u1"):
        load(stack.domain.channel, module, what)
