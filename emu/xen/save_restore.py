"""A stack's domU saved into dom0's memory and restored from there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from emu.channel.channel import CommandTimeout, Process
from emu.deadline import Deadline
from emu.errors import NotHeld
from emu.lab.stack import Stack
from emu.xen.domain import Domain
from emu.xen.host import Host
from emu.xen.ring import Ring

FILE = "/run/domu.save"
STOCK_MOVE = "kernel WARNING"
"""What the console driver of Linux 6.1 says when a guest with two consoles is restored: see
`emu.rig.known_leaks`."""
SAVED_WITHIN = 120.0
SUSPENDED_WITHIN = 60.0
RECONNECTED_WITHIN = 20.0
"""Seconds in which both ends of a disk have found each other after a restore."""
_WORDS = 8


def save(stack: Stack) -> None:
    """Save the domU; returns when it is gone. Raises NotHeld with xl's words when it could not be.

    Nobody asks dom0 for anything meanwhile: that would take the CPU from what is copied.
    """
    with _started(stack) as process:
        _finish(process, stack.domain.name)


@contextlib.contextmanager
def saving(stack: Stack) -> Iterator[None]:
    """Like `save`; the body runs when the domU stands still and its pages are being written."""
    with _started(stack) as process:
        wait_suspended(stack.host, stack.domain.name, process, SUSPENDED_WITHIN)
        yield
        _finish(process, stack.domain.name)


def wait_suspended(host: Host, name: str, moving: Process, timeout: float) -> None:
    """Wait until a domU stands still at its source, or `moving`, which copies it, has ended.

    `timeout` in seconds before scaling. Raises CommandTimeout.
    """
    looked = threading.Event()
    looked.set()
    deadline = Deadline(f"{name} to be suspended", timeout)
    # xenstored says when a domain has shut down: to ask xl all the time slows the copying.
    watch = ["xenstore-watch", "@releaseDomain"]
    with host.dom0.spawn(watch, on_stdout=lambda _: looked.set()):
        while moving.ended is None:
            if looked.is_set():
                looked.clear()
                if any(info.name == name and info.state[3] == "s" for info in host.list()):
                    return
            if deadline.passed:
                raise CommandTimeout(f"waited {deadline.spent:.0f} s for {deadline.what}")
            time.sleep(0.05)


def _started(stack: Stack) -> Process:
    stack.domain.close()
    return stack.host.dom0.spawn(["xl", "save", stack.domain.name, FILE])


def _finish(process: Process, name: str) -> None:
    ended = process.wait(SAVED_WITHIN)
    if ended.status != 0:
        said = b"".join(iter(lambda: process.read(stream=2), b""))
        lines = said.decode(errors="replace").splitlines()
        raise NotHeld(f"xl save of {name} {ended}", lines=lines[-_WORDS:])


def restore(stack: Stack) -> None:
    """Restore the domU: another domid, another directory in xenstore; waits for its agent."""
    name = stack.domain.name
    stack.host.xl("restore", FILE, timeout=120)
    stack.domain = stack.host.find(name)
    stack.resumes += 1
    stack.domain.open_channel(60)


def reconnected(domain: Domain, disk: str) -> Ring:
    """Wait until both ends of a disk are connected after a restore; the front end comes second.

    Raises NotHeld with both states when they do not get there.
    """
    deadline = Deadline(f"both ends of {disk}", RECONNECTED_WITHIN)
    while not (ring := domain.ring(disk)).connected:
        if deadline.passed:
            raise NotHeld(
                f"{disk} of domU {domain.name} did not connect within {deadline.spent:.0f} s "
                f"after it was restored: front end {ring.front_state}, back end "
                f"{ring.back_state}, {domain.reported(disk)}",
                lines=[
                    *domain.last_words(domain.channel),
                    *domain.last_words(domain.host.dom0),
                ],
            )
        time.sleep(0.05)
    return ring
