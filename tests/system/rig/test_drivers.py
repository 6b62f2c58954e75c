"""Our drivers in the running guests: swapped in seconds, and identified from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emu.deadline import Deadline
from emu.errors import NotHeld
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.modules import Driver, End
from emu.images.patched import from_environment
from emu.stack.drivers import connect, driver_for, load_driver
from emu.stack.stack import Stack
from emu.xen import drivers

Get = Callable[[End, str], Driver]


@pytest.fixture
def driver(stack: Stack, cache: Cache) -> Get:
    return lambda end, which: driver_for(
        end, which, stack.artifacts, BuildContext(cache, patched=from_environment())
    )


def log_of(stack: Stack, end: End) -> str:
    channel = stack.domain.channel if end == "front" else stack.host.dom0
    return channel.run(["dmesg"], timeout=20).text


def test_patched_ends_log_the_ring(stack: Stack, cache: Cache, driver: Get) -> None:
    connect(
        stack,
        {"front": driver("front", "patched"), "back": driver("back", "patched")},
        cache,
        pages=8,
    )
    line = "connected: ring 8 pages, 256 requests, 1 queue(s)"
    assert f"blkfront: xvda: {line}" in log_of(stack, "front")
    assert line in log_of(stack, "back")


def test_stock_ends_log_no_ring(stack: Stack, cache: Cache, driver: Get) -> None:
    connect(
        stack, {"front": driver("front", "stock"), "back": driver("back", "stock")}, cache, pages=8
    )
    for end in ("front", "back"):
        assert "connected: ring" not in log_of(stack, end)


def test_swap_takes_seconds(stack: Stack, cache: Cache, driver: Get) -> None:
    patched, stock = driver("back", "patched"), driver("back", "stock")
    until = Deadline("three drivers to be swapped", 30)
    for one, order in ((patched, 4), (stock, 1), (patched, 0)):
        now = load_driver(stack.host.dom0, one, cache, {"max_ring_page_order": order})
        assert now.build_id == one.build_id
        assert now.parameters["max_ring_page_order"] == str(order)
    assert not until.passed, f"a driver takes more than 10 s to swap: {until}"
    stack.domain.attach(stack.lun)
    assert stack.domain.back_tree().integer("max-ring-page-order") == 0


def test_swapped_front_end_has_another_ring(stack: Stack, cache: Cache, driver: Get) -> None:
    front, back = driver("front", "patched"), driver("back", "patched")
    connect(stack, {"front": front, "back": back}, cache, pages=16)
    assert stack.domain.ring().pages == 16
    stack.domain.detach()
    load_driver(stack.domain.channel, front, cache, {"max_ring_page_order": 1})
    stack.domain.attach(stack.lun)
    assert stack.domain.wait_connected().pages == 2


def test_refused_module_is_named(stack: Stack, driver: Get, tmp_path: Path) -> None:
    # Cut short on this machine's disk after it was checked: the guest's kernel has to notice.
    whole = driver("front", "patched").path.read_bytes()
    cut = tmp_path / "xen_blkfront.ko"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotHeld, match=r"u1 refused xen_blkfront\.ko"):
        drivers.load(stack.domain.channel, drivers.FRONT, cut)


def test_module_in_use_is_reported(stack: Stack, cache: Cache, driver: Get) -> None:
    back = driver("back", "patched")
    connect(stack, {"front": driver("front", "patched"), "back": back}, cache, pages=1)
    stack.domain.channel.spawn(["sh", "-c", "exec 3< /dev/xvda; sleep 60"])
    opened = "ls -l /proc/[0-9]*/fd 2> /dev/null | grep -q xvda"
    stack.domain.channel.wait_until(opened, "the disk to be opened", 10)
    with pytest.raises(NotHeld, match="u1 did not let go of xen_blkfront"):
        drivers.unload(stack.domain.channel, drivers.FRONT)
