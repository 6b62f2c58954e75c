"""The drivers of a stack: chosen and checked for its kernels, loaded, connected over a LUN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from emu.channel.channel import Channel
from emu.images import counted, counters, elf
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.kernel_specs import require_buildable, require_series, spec
from emu.images.kernels import Kernel
from emu.images.modules import PATCHED, STOCK, Driver, End, for_guest, get_driver, read_driver
from emu.images.tree_kernel import TreeWish
from emu.stack.stack import Artifacts, Stack, check_kernels
from emu.stack.wish import Wish
from emu.xen import drivers
from emu.xen.disk import FIRST, NamedDisk
from emu.xen.domain import CONNECT_TIMEOUT
from emu.xen.drivers import LoadedDriver
from emu.xen.ring import Ring

PAGES_PARAMETER, ORDER_PARAMETER = "max_ring_pages", "max_ring_page_order"
"""What a driver's ring is limited by: the series has the number, stock drivers the order alone."""


def check_choice(wish: Wish, context: BuildContext, *, front: str, back: str) -> None:
    """Raise InputError for kernels that can't be had, or that these drivers can't be built for.

    A module that is given has to be one. It takes no kernel to tell: nothing is fetched for what
    would be refused later.
    """
    check_kernels(wish)
    ends: tuple[tuple[End, str, str | TreeWish], ...] = (
        ("front", front, wish.domu_choice),
        ("back", back, wish.dom0_choice),
    )
    asked = context.patched
    for end, which, _ in ends:
        given = asked.given(end) if which == PATCHED else Path(which)
        if given is not None and which != STOCK:
            read_driver(end, given)
    ours = [
        (end, kernel)
        for end, which, kernel in ends
        if which == PATCHED and asked.given(end) is None and isinstance(kernel, str)
    ]
    for end, kernel in ours:
        same = [f"--{one} stock" for one, other in ours if end == one or other == kernel]
        if asked.base == "series":
            require_series(spec(kernel), " ".join(same))
        elif asked.patches or asked.tree is not None:
            require_buildable(spec(kernel), " ".join(same))


def driver_for(end: End, which: str, artifacts: Artifacts, context: BuildContext) -> Driver:
    """One end's driver for the kernel it runs on, checked against it and its parameter."""
    kernel = artifacts.domu_kernel if end == "front" else artifacts.kernel
    return checked_driver(end, which, kernel, context)


def checked_driver(end: End, which: str, kernel: Kernel, context: BuildContext) -> Driver:
    """One end's driver, loadable by `kernel` with a limit on its ring.

    Raises InputError as `get_driver`, and for a driver without such a limit.
    """
    driver = get_driver(end, which, kernel, context)
    if PAGES_PARAMETER not in driver.info.parameters:
        elf.check_module(driver.info, kernel.info(), parameters=[ORDER_PARAMETER])
    if (driver.path.parent / counted.FOLDER).is_dir():
        return replace(driver, counters=counters.build(kernel, context))
    return driver


def ring_limit(driver: Driver, pages: int) -> dict[str, str | int]:
    """The parameter that limits a driver's ring to `pages`, a power of two."""
    if PAGES_PARAMETER in driver.info.parameters:
        return {PAGES_PARAMETER: pages}
    return {ORDER_PARAMETER: pages.bit_length() - 1}


def drivers_for(
    artifacts: Artifacts, context: BuildContext, *, front: str = "patched", back: str = "patched"
) -> dict[End, Driver]:
    """Both ends' drivers for the stack's kernels, checked."""
    return {
        "front": driver_for("front", front, artifacts, context),
        "back": driver_for("back", back, artifacts, context),
    }


def connect(
    stack: Stack,
    built: Mapping[End, Driver],
    cache: Cache,
    pages: int,
    timeout: float = CONNECT_TIMEOUT,
    disk: NamedDisk = FIRST,
) -> Ring:
    """Load both ends, attach the stack's LUN, and wait for the ring they agree on."""
    load_drivers(stack, built, cache, pages)
    stack.domain.attach(stack.lun, disk.name, disk.options)
    return stack.domain.wait_connected(disk.name, timeout)


def load_drivers(
    stack: Stack, built: Mapping[End, Driver], cache: Cache, pages: int
) -> dict[End, LoadedDriver]:
    """Load both ends; the front end asks for a ring of `pages`, the back end offers its most."""
    return {
        "back": load_driver(stack.host.dom0, built["back"], cache, {}),
        "front": load_driver(
            stack.domain.channel, built["front"], cache, ring_limit(built["front"], pages)
        ),
    }


def load_driver(
    channel: Channel, driver: Driver, cache: Cache, parameters: dict[str, str | int]
) -> LoadedDriver:
    """Swap a checked driver into a running guest, without its debug information."""
    module = drivers.FRONT if driver.end == "front" else drivers.BACK
    if driver.counters is not None:
        drivers.keep_counters(channel, driver.counters)
    with cache.scratch("module") as folder:
        return drivers.swap(channel, module, for_guest(driver, folder), parameters)
