"""A domU that migrates: inside one host, or from one host to another over their network.

Live (`xl migrate`) copies pages while the guest runs, and asks the hypervisor which of them
changed: a PVH guest can, a PV guest can't on Debian's Xen, which has no shadow paging. What PV
has is stop-and-copy: saved into a stream and restored from it, with nothing kept in between.
Either way the source destroys its domain only when the target has reported that it has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from emu.channel.channel import CommandTimeout, Process
from emu.deadline import Deadline, poll
from emu.errors import EmuError, InputError, NotHeld, RigError
from emu.xen import save_restore, sharing
from emu.xen.domain import Domain
from emu.xen.host import Host
from emu.xen.save_restore import STOCK_WARNING

PORT = 8002
"""The TCP port on which the target receives a domU."""
MOVED_WITHIN = 240.0
"""Seconds for a domU to be copied: 8 for 128 MiB, PVH, between two hosts on two cores that have
nothing else to do (measured), several times that beside other work."""
ANSWERS_WITHIN = 60.0

_LIVE = 'exec xl migrate -s "" "$1" "$2"'
# The stream is descriptor 3: xl reports its progress on standard output.
_SAVE = 'set -o pipefail; xl save -p "$1" /proc/self/fd/3 3>&1 >&2 | $2'
_RECEIVE = "xl migrate-receive"
_RESTORE = "set -o pipefail; $1 - | xl restore -p /proc/self/fd/0 >&2"
_LAST_LINES = 12


class MigrationFailed(NotHeld):
    """The domU did not reach its target: it still runs at its source."""


class Migration:
    """A migration under way; `end_receiver` and the waits are for tests of what can go wrong."""

    def __init__(self, domain: Domain, target: Host, source: Process, receiver: Process | None):
        self._domain = domain
        self._target = target
        self._source = source
        self._receiver = receiver

    @property
    def ended(self) -> bool:
        """Whether the source has ended, well or not."""
        return self._source.ended is not None

    def wait_copied(self, mib: int, timeout: float = 60.0) -> None:
        """Wait until the target has so much of the domU's memory, or the migration has ended."""
        name, source = self._domain.name, self._domain.host

        def there() -> bool:
            wanted = (f"{name}--incoming", name)
            ids = self._domain.domid if self._target is source else None
            infos = [i for i in self._target.list() if i.name in wanted and i.domid != ids]
            return any(info.memory >= mib for info in infos)

        deadline = Deadline(f"{mib} MiB of {name} to reach the target", timeout)
        # Each look takes the CPU from the copying.
        if not poll(lambda: self.ended or there(), deadline, pause=0.2):
            raise CommandTimeout(f"waited {deadline.spent:.0f} s for {deadline.what}")

    def wait_suspended(self, timeout: float = MOVED_WITHIN) -> None:
        """Wait until the domU is suspended at its source, or the migration has ended."""
        name, source = self._domain.name, self._domain.host
        save_restore.wait_suspended(source, name, self._source, timeout)

    def end_receiver(self) -> None:
        """Kill what receives the domU at the target, as a target that breaks would."""
        if self._receiver is None:
            raise ValueError("inside one host xl's receiver is a child of its sender")
        self._receiver.kill()

    def finish(self) -> list[str]:
        """Wait for both sides; their last output if either failed, else nothing."""
        sides = [("source", self._source)]
        sides += [("target", self._receiver)] if self._receiver else []
        lines, failed = [], False
        for side, process in sides:
            # A receiver whose sender has ended has nothing to wait for.
            ended = process.wait(MOVED_WITHIN if side == "source" else ANSWERS_WITHIN)
            output = b"".join(iter(lambda p=process: p.read(stream=2), b""))  # type: ignore[misc]
            failed |= ended.status != 0
            tail = output.decode(errors="replace").splitlines()[-_LAST_LINES:]
            lines += [f"{side} {ended}", *(f"{side}: {line}" for line in tail)]
        return lines if failed else []


@contextlib.contextmanager
def migrating(
    domain: Domain,
    to: Host | None = None,
    *,
    kind: str,
    live: bool = True,
    disks: Sequence[str] = (),
) -> Iterator[Migration]:
    """Migrate a domU of `kind` ("pv", "pvh") while the body runs: to another host, or live to
    another domain of its own host.

    After the context it runs at its target, which has it among its `domains`, with all of `disks`
    connected. Raises MigrationFailed, with both sides' output, when it did not get there: then it
    runs at its source. InputError for what Xen can't do here.
    """
    if live and kind == "pv":
        raise InputError(
            "a PV domU can't migrate live: this Xen has no shadow paging",
            hint="live=False stops it and copies it",
        )
    if not live and to is None:
        raise InputError("inside one host a domU that is stopped is saved and restored")
    source, target = domain.host, to or domain.host
    with contextlib.ExitStack() as open_:
        for machine in {id(host): host.machine for host in (source, target)}.values():
            open_.enter_context(machine.watch.allow(STOCK_WARNING, guest=domain.name))
        move = open_.enter_context(_started(domain, to, live))
        yield move
        if output := move.finish():
            _come_back(domain, target, live)
            way = "live" if live else "by stop-and-copy"
            raise MigrationFailed(f"{domain.name} did not migrate {way}", lines=output)
        if not live:
            source.xl("destroy", str(domain.domid), timeout=60)
            target.xl("unpause", domain.name, timeout=20)
        source.release(domain.name)
        moved = target.find(domain.name)
        moved.open_channel(ANSWERS_WITHIN)
        for disk in disks:
            save_restore.reconnected(moved, disk)


@contextlib.contextmanager
def _started(domain: Domain, to: Host | None, live: bool) -> Iterator[Migration]:
    source = domain.host
    with contextlib.ExitStack() as open_:
        receiver, sink = None, _RECEIVE
        if to is not None:
            address = sharing.address(to.dom0)
            listen = f"emu-stream listen {address} {PORT}"
            command = f"exec {listen} {_RECEIVE}" if live else _RESTORE
            receiver = open_.enter_context(to.dom0.spawn(["sh", "-c", command, "sh", listen]))
            sink = f"emu-stream connect {address} {PORT}"
        script = _LIVE if live else _SAVE
        sender = source.dom0.spawn(["sh", "-c", script, "sh", domain.name, sink])
        open_.enter_context(sender)
        yield Migration(domain, to or source, sender, receiver)


def _come_back(domain: Domain, target: Host, live: bool) -> None:
    """Destroy what the target has of the domU, and get an answer from it at its source."""
    source = domain.host
    for info in target.list():
        here = target is source and info.domid == domain.domid
        if not here and info.name in (domain.name, f"{domain.name}--incoming"):
            target.xl("destroy", str(info.domid), timeout=60)
    if not live:
        with contextlib.suppress(EmuError):  # it is not paused where the saving failed
            source.xl("unpause", domain.name, timeout=20)
    try:
        domain.channel.ping(ANSWERS_WITHIN)
    except RigError:
        domain.close()
        domain.open_console()
        domain.open_channel(ANSWERS_WITHIN)
