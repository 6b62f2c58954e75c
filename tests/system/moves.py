"""A domU that moves: saved and restored under dom0, with its requests held half-way."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ends import DISK, SETTLES_WITHIN, Ends

from emu import paths
from emu.images import agent, kbuild, modules
from emu.images.kernels import spec
from emu.progress import Progress
from emu.xen.domain import virtual_device
from emu.xen.ring import Ring

SAVED = "/run/domu.save"
BACK_ENDS = Path(__file__).parent / "back-ends"
HELD_WITHIN = 30.0
"""Seconds in which all requests of a test have reached the ring, or wait for it."""


def back_end(ends: Ends, name: str) -> str:
    """The module of a back end of `back-ends/`: ours with one patch more."""
    kernel = ends.stack.inputs.kernel
    patches = kbuild.series(paths.guest_images() / "patches/xen-block", spec(kernel.name).version)
    made = modules.build_drivers(
        kernel, [*patches, BACK_ENDS / f"{name}.patch"], ends.cache, Progress()
    )
    return str(made / "xen-blkback.ko")


def blocks(ends: Ends) -> None:
    """Put the program of `guest/blocks.c` into the domU."""
    with ends.cache.scratch("blocks") as folder:
        program = folder / "blocks"
        source = Path(__file__).parent / "guest/blocks.c"
        command = [agent.CC, *agent.FLAGS, "-o", str(program), str(source)]
        subprocess.run(command, check=True)
        ends.channel("front").put(program, "/tmp/blocks", mode=0o755)


def outstanding(ends: Ends, queue: int = 0) -> int:
    """Requests of the front end that the back end has not answered."""
    views = ends.stack.domain.queues(DISK)
    assert views.front, "the front end shows no queue"
    number = views.front[queue].outstanding
    assert number is not None
    return number


def wait_outstanding(ends: Ends, number: int) -> None:
    """Wait until so many requests are on the ring."""
    until = time.monotonic() + HELD_WITHIN
    while (now := outstanding(ends)) != number:
        assert time.monotonic() < until, f"{now} requests are on the ring, not {number}"
        time.sleep(0.1)


@contextlib.contextmanager
def held(ends: Ends) -> Iterator[None]:
    """The LUN stands still; for less than the 30 s after which a request fails."""
    dom0 = ends.channel("back")
    server = dom0.run(["pidof", "tcmu-runner"], timeout=20).text.strip()
    dom0.run(["kill", "-STOP", server], timeout=20)
    try:
        yield
    finally:
        dom0.run(["kill", "-CONT", server], timeout=20)


def save(ends: Ends) -> None:
    """Save the domU into dom0's memory; returns when it is gone."""
    with saving(ends):
        pass


@contextlib.contextmanager
def saving(ends: Ends) -> Iterator[None]:
    """Save the domU; the body runs when it stands still and its pages are being written."""
    stack = ends.stack
    name = stack.domain.name
    stack.domain.close()
    script = "xl save $1 $2 > /run/save.log 2>&1; echo $? > /run/save.status"
    stack.host.dom0.run("rm -f /run/save.status", timeout=20)
    stack.host.dom0.spawn(["sh", "-c", script, "sh", name, SAVED])
    # The state of a suspended domain; a domain that is gone already will do as well.
    suspended = f"until xl list {name} 2>/dev/null | grep -q -- '---s' || [ -e /run/save.status ]"
    stack.host.dom0.run(f"{suspended}; do usleep 50000; done", timeout=60)
    yield
    ended = stack.host.dom0.run(
        "until [ -e /run/save.status ]; do usleep 50000; done; cat /run/save.status /run/save.log",
        timeout=120,
    ).text
    assert ended.startswith("0\n"), ended


def restore(ends: Ends) -> None:
    """Restore the domU: another domid, another directory; returns when it answers."""
    stack = ends.stack
    name = stack.domain.name
    stack.host.xl("restore", SAVED, timeout=120)
    domid = stack.host.domain_info(name).domid
    tty = stack.host.read(f"/local/domain/{domid}/console/tty")
    assert tty
    stack.domain = stack.host.adopt(name, domid, tty)
    stack.domain.open_channel(60)


def reconnected(ends: Ends) -> Ring:
    """Wait until both ends are connected after a restore; the front end comes second."""
    until = time.monotonic() + SETTLES_WITHIN
    while not (ring := ends.stack.domain.ring(DISK)).connected:
        assert time.monotonic() < until, f"ends stand at {ring.front_state}, {ring.back_state}"
        time.sleep(0.05)
    return ring


def served(ends: Ends, what: str) -> int:
    """What the back end of the disk counted since it connected: wr_req, rd_req, f_req."""
    name = f"vbd-{ends.stack.domain.domid}-{virtual_device(DISK)}"
    path = f"/sys/bus/xen-backend/devices/{name}/statistics/{what}"
    return int(ends.channel("back").run(["cat", path], timeout=20).text)
