"""`emu run`: attach a disk over our drivers, look at the ring and the grants, move data.

Every figure comes from the running system. What should hold is a list of named checks;
the run fails with those that did not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from emu.channel.channel import Channel, CommandTimeout
from emu.errors import NotHeld
from emu.images import elf
from emu.images.cache import Cache
from emu.images.kernels import Kernel
from emu.images.modules import Driver, End, for_guest, get_driver
from emu.lab.report import RunReport, RunWish, Timing, checks
from emu.lab.stack import Inputs, Stack, prepare, running
from emu.progress import Progress
from emu.xen import data, drivers, lun
from emu.xen.domain import CONNECT_TIMEOUT
from emu.xen.drivers import LoadedDriver
from emu.xen.ring import Ring

DISK = "xvda"
PAGES_PARAMETER, ORDER_PARAMETER = "max_ring_pages", "max_ring_page_order"
"""What a driver's ring is limited by: the number is our series' own, stock ones know the order."""
DEADLINE_DATA = 300.0


def perform(wish: RunWish, cache: Cache, progress: Progress) -> RunReport:
    """Do it all; the report's checks say what held.

    Raises InputError for what can't run here, NotHeld where the stack stopped half-way,
    RigError where the rig did.
    """
    timing = Timing()
    with timing.stage("prepare_s", "preparing", progress):
        inputs = prepare(wish.stack, cache, progress)
        built = drivers_for(inputs, cache, progress, front=wish.front, back=wish.back)
    with running(inputs, cache, progress) as stack:
        timing.stages["start_s"] = stack.start_s
        report = _drive(wish, inputs, built, stack, timing, cache, progress)
    return replace(report, checks=tuple(checks(report)))


def driver_for(end: End, which: str, inputs: Inputs, cache: Cache, progress: Progress) -> Driver:
    """One end's driver for the kernel it runs on, checked against it and its parameter."""
    kernel = inputs.domu_kernel if end == "front" else inputs.kernel
    return checked_driver(end, which, kernel, cache, progress)


def checked_driver(
    end: End, which: str, kernel: Kernel, cache: Cache, progress: Progress
) -> Driver:
    """One end's driver, loadable by `kernel` with a limit on its ring.

    Raises InputError as `get_driver`, and for a driver without such a limit.
    """
    driver = get_driver(end, which, kernel, cache, progress)
    if PAGES_PARAMETER not in driver.info.parameters:
        elf.check_module(driver.info, kernel.info(), parameters=[ORDER_PARAMETER])
    return driver


def ring_limit(driver: Driver, pages: int) -> dict[str, str | int]:
    """The parameter that limits a driver's ring to `pages`, a power of two."""
    if PAGES_PARAMETER in driver.info.parameters:
        return {PAGES_PARAMETER: pages}
    return {ORDER_PARAMETER: pages.bit_length() - 1}


def drivers_for(
    inputs: Inputs,
    cache: Cache,
    progress: Progress,
    *,
    front: str = "patched",
    back: str = "patched",
) -> dict[End, Driver]:
    """Both ends' drivers for the stack's kernels, checked."""
    return {
        "front": driver_for("front", front, inputs, cache, progress),
        "back": driver_for("back", back, inputs, cache, progress),
    }


def _drive(
    wish: RunWish,
    inputs: Inputs,
    built: dict[End, Driver],
    stack: Stack,
    timing: Timing,
    cache: Cache,
    progress: Progress,
) -> RunReport:
    host, domain = stack.host, stack.domain
    with timing.stage("drivers_s", "loading the drivers", progress):
        loaded = load_drivers(stack, built, cache, wish.ring_pages)
    before = host.grants().of(domain.domid)
    with timing.stage("attach_s", f"attaching {stack.lun.device} as {DISK}", progress):
        domain.attach(stack.lun, DISK)
        ring = domain.wait_connected(DISK)
    attached = host.grants().of(domain.domid)
    with timing.stage("data_s", f"writing and reading back {wish.data_mib} MiB", progress):
        written = _moved(data.write, domain.channel, DISK, wish.data_mib)
        read_back = _moved(data.read, domain.channel, DISK, wish.data_mib)
        device = stack.lun.device.removeprefix("/dev/")
        seen_by_dom0 = _moved(data.read, host.dom0, device, wish.data_mib)
    views = domain.queues(DISK)
    session = lun.session_up(host.dom0, stack.lun)
    with timing.stage("detach_s", f"detaching {DISK}", progress):
        domain.detach(DISK)
    after = host.grants().of(domain.domid)
    stack.machine.watch.check()
    return RunReport(
        wish=wish,
        inputs=inputs,
        origin=stack.origin,
        qemu=str(stack.machine.qmp("query-version")["package"]) or "unpackaged",
        xen=host.info()["xen_version"],
        dom0_release=host.dom0.run(["uname", "-r"], timeout=20).text.strip(),
        domu_release=domain.channel.run(["uname", "-r"], timeout=20).text.strip(),
        lun=stack.lun,
        session=session,
        ring=ring,
        views=views,
        before=before,
        attached=attached,
        after=after,
        bytes_moved=wish.data_mib * lun.MIB,
        written=written,
        read_back=read_back,
        seen_by_dom0=seen_by_dom0,
        front=loaded["front"],
        back=loaded["back"],
        built=built,
        timing=timing,
    )


def connect(
    stack: Stack,
    built: Mapping[End, Driver],
    cache: Cache,
    pages: int,
    timeout: float = CONNECT_TIMEOUT,
) -> Ring:
    """Load both ends, attach the stack's LUN, and wait for the ring they agree on."""
    load_drivers(stack, built, cache, pages)
    stack.domain.attach(stack.lun, DISK)
    return stack.domain.wait_connected(DISK, timeout)


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
    """Swap a checked driver into a running guest; debug information stays at home."""
    module = drivers.FRONT if driver.end == "front" else drivers.BACK
    with cache.scratch("module") as folder:
        return drivers.swap(channel, module, for_guest(driver, folder), parameters)


def _moved(
    move: Callable[[Channel, str, int, float], str], channel: Channel, disk: str, mib: int
) -> str:
    try:
        return move(channel, disk, mib, DEADLINE_DATA)
    except CommandTimeout as late:
        raise NotHeld(
            f"{channel.name}: {mib} MiB did not pass {disk} within {DEADLINE_DATA:.0f} s",
            lines=late.lines,
        ) from None
