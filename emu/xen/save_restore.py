"""A domU saved into dom0's memory and restored from there."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator

from emu.channel.channel import CommandTimeout, Process
from emu.deadline import Deadline, poll
from emu.errors import NotHeld
from emu.xen.dmesg import log_tail
from emu.xen.domain import Domain
from emu.xen.host import Host
from emu.xen.ring import Ring

STOCK_WARNING = "kernel WARNING"
"""What the console driver of Linux 6.1 logs in a guest with two consoles that is resumed as
another domain (xencons_resume(), drivers/tty/hvc/hvc_xen.c)."""
SAVED_WITHIN = 120.0
SUSPENDED_WITHIN = 60.0
RECONNECTED_WITHIN = 20.0
"""Seconds in which both ends of a disk connect after a restore."""
_LAST_LINES = 8
_ANSWERS_WITHIN = 60.0
_WHY = re.compile(r"[Ff]reez|[Ss]uspend|\btask:")
"""What a kernel says that can't be suspended: which tasks could not be frozen, for one."""


def save_file(name: str) -> str:
    """The file in dom0 that a domU is saved into."""
    return f"/run/{name}.save"


def save(domain: Domain) -> None:
    """Save a domU; returns when it is gone.

    Raises NotHeld when it fails, with xl's output and what its kernel says of that; it goes on
    then, with its console and its channel. dom0 runs nothing else meanwhile: that would take the
    CPU from the copying.
    """
    with _started(domain) as process:
        _finish(process, domain.name)


@contextlib.contextmanager
def saving(domain: Domain) -> Iterator[None]:
    """Like `save`; the body runs when the domU is suspended and its pages are being written."""
    with _started(domain) as process:
        wait_suspended(domain.host, domain.name, process, SUSPENDED_WITHIN)
        yield
        _finish(process, domain.name)


def wait_suspended(host: Host, name: str, copying: Process, timeout: float) -> None:
    """Wait until a domU is suspended at its source, or `copying` has ended.

    `timeout` in seconds before scaling. Raises CommandTimeout.
    """
    changed = threading.Event()
    changed.set()

    def suspended() -> bool:
        if copying.ended is not None:
            return True
        if not changed.is_set():
            return False
        changed.clear()
        return any(info.name == name and info.state[3] == "s" for info in host.list())

    deadline = Deadline(f"{name} to be suspended", timeout)
    # xenstored reports when a domain has shut down: polling xl slows the copying.
    watch = ["xenstore-watch", "@releaseDomain"]
    with host.dom0.spawn(watch, on_stdout=lambda _: changed.set()):
        if not poll(suspended, deadline):
            raise CommandTimeout(f"waited {deadline.spent:.0f} s for {deadline.what}")


@contextlib.contextmanager
def _started(domain: Domain) -> Iterator[Process]:
    domain.close()
    command = ["xl", "save", domain.name, save_file(domain.name)]
    try:
        with domain.host.dom0.spawn(command) as process:
            yield process
    except (NotHeld, CommandTimeout) as error:
        raise NotHeld(error.message, lines=[*error.lines, *_opened_again(domain)]) from error


def _opened_again(domain: Domain) -> list[str]:
    """Open the console and the channel of a domU that was not saved; its kernel's words."""
    states = {info.domid: info.state for info in domain.host.list()}
    if domain.is_open or set("sc") & set(states.get(domain.domid, "s")):
        return []
    domain.open_console()
    channel = domain.open_channel(_ANSWERS_WITHIN)
    logged = channel.run("dmesg", timeout=20).text.splitlines()
    words = [line for line in logged if _WHY.search(line)]
    return [f"{domain.name}: {line}" for line in words[-_LAST_LINES:]]


def _finish(process: Process, name: str) -> None:
    ended = process.wait(SAVED_WITHIN)
    if ended.status != 0:
        output = b"".join(iter(lambda: process.read(stream=2), b""))
        lines = output.decode(errors="replace").splitlines()
        raise NotHeld(f"xl save of {name} {ended}", lines=lines[-_LAST_LINES:])


def restore(host: Host, name: str) -> Domain:
    """Restore a saved domU, with another domid; waits for its agent."""
    host.xl("restore", save_file(name), timeout=120)
    domain = host.find(name)
    domain.open_channel(60)
    return domain


def reconnected(domain: Domain, disk: str) -> Ring:
    """Wait until both ends of a disk are connected after a restore; the front end comes second.

    Raises NotHeld with both states when they do not get there.
    """
    deadline = Deadline(f"both ends of {disk}", RECONNECTED_WITHIN)
    ring = poll(lambda: domain.ring(disk), deadline, until=lambda ring: ring.connected)
    if not ring.connected:
        raise NotHeld(
            f"{disk} of domU {domain.name} did not connect within {deadline.spent:.0f} s "
            f"after it was restored: front end {ring.front_state}, back end "
            f"{ring.back_state}, {domain.reported(disk)}",
            lines=[*log_tail(domain.channel), *log_tail(domain.host.dom0)],
        )
    return ring
