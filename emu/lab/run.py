"""`emu run`: attach a disk over our drivers, read ring and grants, transfer data.

Every figure comes from the running system. What should hold is a list of named checks; a run
in which one does not hold has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from emu.channel.channel import Channel, CommandTimeout
from emu.errors import GuestError, NotHeld
from emu.images.context import BuildContext
from emu.images.modules import Driver, End
from emu.lab.report import RunReport, Timing, checks
from emu.progress import staged
from emu.stack.drivers import check_choice, drivers_for, load_drivers
from emu.stack.stack import Artifacts, Stack, prepare, running
from emu.stack.wish import RunWish
from emu.xen import data, lun

DEADLINE_DATA = 300.0
QEMU_ANSWERS = 10.0
"""Seconds in which a QEMU that runs answers, however busy its guests are."""
STARTING, STOPPING = "starting the stack", "stopping QEMU"


def perform(wish: RunWish, context: BuildContext) -> RunReport:
    """Run it all; the report's checks say what held.

    Raises InputError for what can't run here, NotHeld when the stack stopped half-way or a guest
    did not survive the drivers, RigError when the rig broke.
    """
    timing = Timing()
    check_choice(wish.stack, context, front=wish.front, back=wish.back)
    with (
        timing.stage("prepare_s", "preparing", context.progress),
        context.recording() as packages,
    ):
        artifacts = prepare(wish.stack, context)
        built = drivers_for(artifacts, context, front=wish.front, back=wish.back)
    with staged(running(artifacts, context), context.progress, STARTING, STOPPING) as stack:
        timing.stages["start_s"] = stack.start_s
        try:
            report = _drive(wish, artifacts, built, stack, timing, context)
        except GuestError as error:  # it ran until the drivers came
            if stack.machine.running:
                # One that is stopped answers for its guests: that is the rig's, and raised here.
                stack.machine.qmp("query-status", timeout=QEMU_ANSWERS)
            raise NotHeld(error.message, hint=error.hint, lines=error.lines) from error
        report = replace(report, checks=tuple(checks(report)), packages=tuple(packages))
        if failed := [check.name for check in report.checks if not check.held]:
            stack.machine.rundir.keep(f"did not hold: {'; '.join(failed)}")
    return report


def _drive(
    wish: RunWish,
    artifacts: Artifacts,
    built: dict[End, Driver],
    stack: Stack,
    timing: Timing,
    context: BuildContext,
) -> RunReport:
    host, domain, progress = stack.host, stack.domain, context.progress
    disk = wish.disk
    with timing.stage("drivers_s", "loading the drivers", progress):
        loaded = load_drivers(stack, built, context.cache, wish.ring_pages)
    with progress.stage("reading the grants"):
        before = host.grants().of(domain.domid)
    with timing.stage("attach_s", f"attaching {stack.lun.device} as {disk.name}", progress):
        domain.attach(stack.lun, disk.name, disk.options)
        progress.tick("waiting for both ends to connect")
        ring = domain.wait_connected(disk.name)
    with progress.stage("reading the grants"):
        attached = host.grants().of(domain.domid)
    with timing.stage("data_s", f"writing and reading back {wish.moved_mib} MiB", progress):
        progress.tick("writing in the domU")
        written = _moved(data.write, domain.channel, disk.block, wish.moved_mib)
        progress.tick("reading in the domU")
        read_back = _moved(data.read, domain.channel, disk.block, wish.moved_mib)
        progress.tick("reading in dom0")
        seen_by_dom0 = _moved(data.read, host.dom0, stack.lun.block, wish.moved_mib)
    with progress.stage("reading the queues"):
        views = domain.queues(disk.name)
        session = lun.session_up(host.dom0, stack.lun)
    with timing.stage("detach_s", f"detaching {disk.name}", progress):
        domain.detach(disk.name)
    with progress.stage("reading the grants and versions"):
        after = host.grants().of(domain.domid)
        qemu = str(stack.machine.qmp("query-version")["package"]) or "unpackaged"
        xen = host.info()["xen_version"]
        dom0_release = host.dom0.run(["uname", "-r"], timeout=20).text.strip()
        domu_release = domain.channel.run(["uname", "-r"], timeout=20).text.strip()
    stack.machine.watch.check()
    return RunReport(
        wish=wish,
        artifacts=artifacts,
        origin=stack.origin,
        qemu=qemu,
        xen=xen,
        dom0_release=dom0_release,
        domu_release=domu_release,
        lun=stack.lun,
        session=session,
        ring=ring,
        views=views,
        before=before,
        attached=attached,
        after=after,
        bytes_moved=wish.moved_mib * lun.MIB,
        written=written,
        read_back=read_back,
        seen_by_dom0=seen_by_dom0,
        front=loaded["front"],
        back=loaded["back"],
        built=built,
        timing=timing,
    )


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
