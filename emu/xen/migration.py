"""A domU that migrates: inside one host, or from one of `two_hosts` to the other.

Live (`xl migrate`) copies pages while the guest runs, and asks the hypervisor which of them
changed: a PVH guest can, a PV guest can't on Debian's Xen, which has no shadow paging. What PV
has is stop-and-copy: saved into a stream and restored from it, with nothing kept in between.
Either way the source gives its domain up only when the target has said that it has it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from emu.channel.channel import CommandTimeout, Process
from emu.deadline import Deadline
from emu.errors import EmuError, InputError, NotHeld, RigError
from emu.xen import save_restore, sharing
from emu.xen.save_restore import STOCK_MOVE

if TYPE_CHECKING:
    from emu.rig.domu import RigDomu
    from emu.rig.host import RigHost
    from emu.xen.host import Host

PORT = 8002
"""Where the target waits for a domU."""
MOVED_WITHIN = 240.0
"""Seconds for a domU to be copied: 8 for 128 MiB, PVH, between two hosts on two cores that have
nothing else to do (measured), several times that beside other work."""
ANSWERS_WITHIN = 60.0

_LIVE = 'exec xl migrate -s "" "$1" "$2"'
# The stream is descriptor 3: xl says on standard output what it does.
_SAVE = 'set -o pipefail; xl save -p "$1" /proc/self/fd/3 3>&1 >&2 | $2'
_RECEIVE = "xl migrate-receive"
_RESTORE = "set -o pipefail; $1 - | xl restore -p /proc/self/fd/0 >&2"
_WORDS = 12


class MigrationFailed(NotHeld):
    """The domU did not reach its target: it is where it was, and answers there."""


class Migration:
    """A migration on its way; `end_receiver` and the waits are for tests of what can go wrong."""

    def __init__(self, domu: RigDomu, target: Host, source: Process, receiver: Process | None):
        self._domu = domu
        self._from = domu.host.xen
        self._target = target
        self._source = source
        self._receiver = receiver

    @property
    def ended(self) -> bool:
        """Whether the source is through with it, well or not."""
        return self._source.ended is not None

    def wait_copied(self, mib: int, timeout: float = 60.0) -> None:
        """Wait until the target has so much of the domU's memory, or the migration has ended."""

        def there() -> bool:
            wanted = (f"{self._domu.name}--incoming", self._domu.name)
            ids = self._domu.domain.domid if self._target is self._from else None
            infos = [i for i in self._target.list() if i.name in wanted and i.domid != ids]
            return any(info.memory >= mib for info in infos)

        deadline = Deadline(f"{mib} MiB of {self._domu.name} to reach the target", timeout)
        while not self.ended and not there():
            if deadline.passed:
                raise CommandTimeout(f"waited {deadline.spent:.0f} s for {deadline.what}")
            time.sleep(0.5)  # each look takes the CPU from what is copied

    def wait_suspended(self, timeout: float = MOVED_WITHIN) -> None:
        """Wait until the domU stands still at its source, or the migration has ended."""
        save_restore.wait_suspended(self._from, self._domu.name, self._source, timeout)

    def end_receiver(self) -> None:
        """Kill what receives the domU at the target, as a target that breaks would."""
        if self._receiver is None:
            raise ValueError("inside one host xl's receiver is a child of its sender")
        self._receiver.kill()

    def finish(self) -> list[str]:
        """Wait for both sides; what they said if either failed, else nothing."""
        sides = [("source", self._source)]
        sides += [("target", self._receiver)] if self._receiver else []
        words, failed = [], False
        for side, process in sides:
            # A receiver whose sender has ended has nothing to wait for.
            ended = process.wait(MOVED_WITHIN if side == "source" else ANSWERS_WITHIN)
            said = b"".join(iter(lambda p=process: p.read(stream=2), b""))  # type: ignore[misc]
            failed |= ended.status != 0
            lines = said.decode(errors="replace").splitlines()[-_WORDS:]
            words += [f"{side} {ended}", *(f"{side}: {line}" for line in lines)]
        return words if failed else []


def migrate(domu: RigDomu, to: RigHost | None = None, *, live: bool = True) -> float:
    """Migrate `domu` to another host, or to another domain of its own; see `migrating`.

    Seconds on the host's clock until it answered at its target with its disks connected.
    """
    began = time.monotonic()
    with migrating(domu, to, live=live):
        pass
    return time.monotonic() - began


@contextlib.contextmanager
def migrating(
    domu: RigDomu, to: RigHost | None = None, *, live: bool = True
) -> Iterator[Migration]:
    """Migrate `domu`, while the body runs; after the context it answers at its target.

    All its disks are connected then. Raises MigrationFailed, with both sides' words, when it
    did not get there: then it answers at its source. InputError for what Xen here can't do.
    """
    kind = domu.host.stack.artifacts.wish.domu.kind
    if live and kind == "pv":
        raise InputError(
            "a PV domU can't migrate live: this Xen has no shadow paging",
            hint="live=False stops it and copies it",
        )
    if not live and to is None:
        raise InputError("inside one host a domU that stands still is saved and restored")
    source, target = domu.host, to or domu.host
    with contextlib.ExitStack() as open_:
        for machine in {id(h): h.stack.machine for h in (source, target)}.values():
            open_.enter_context(machine.watch.allow(STOCK_MOVE, guest=domu.name))
        move = open_.enter_context(_started(domu, source, to, live))
        yield move
        words = move.finish()
        if words:
            _come_back(domu, target, live)
            way = "live" if live else "by stop-and-copy"
            raise MigrationFailed(f"{domu.name} did not migrate {way}", lines=words)
        if not live:
            source.xen.xl("destroy", str(domu.domain.domid), timeout=60)
            target.xen.xl("unpause", domu.name, timeout=20)
        _arrive(domu, source, target)


@contextlib.contextmanager
def _started(domu: RigDomu, source: RigHost, to: RigHost | None, live: bool) -> Iterator[Migration]:
    with contextlib.ExitStack() as open_:
        receiver, sink = None, _RECEIVE
        if to is not None:
            address = sharing.address(to.dom0)
            listen = f"emu-stream listen {address} {PORT}"
            command = f"exec {listen} {_RECEIVE}" if live else _RESTORE
            receiver = open_.enter_context(to.dom0.spawn(["sh", "-c", command, "sh", listen]))
            sink = f"emu-stream connect {address} {PORT}"
        script = _LIVE if live else _SAVE
        sender = source.dom0.spawn(["sh", "-c", script, "sh", domu.name, sink])
        open_.enter_context(sender)
        yield Migration(domu, (to or source).xen, sender, receiver)


def _arrive(domu: RigDomu, source: RigHost, target: RigHost) -> None:
    domu.domain.close()
    source.stack.domu = None
    if "front" in source.loaded:
        target.loaded["front"] = source.loaded["front"]
    domu.host = target
    domu.domain = target.xen.find(domu.name)
    target.stack.resumes = source.stack.resumes + 1
    domu.domain.open_channel(ANSWERS_WITHIN)
    for disk in domu.disks:
        save_restore.reconnected(domu.domain, disk)


def _come_back(domu: RigDomu, target: RigHost, live: bool) -> None:
    """Throw away what the target has of the domU, and find it answering at its source."""
    for info in target.xen.list():
        here = target is domu.host and info.domid == domu.domain.domid
        if not here and info.name in (domu.name, f"{domu.name}--incoming"):
            target.xen.xl("destroy", str(info.domid), timeout=60)
    if not live:
        with contextlib.suppress(EmuError):  # it is not paused where the saving failed
            domu.host.xen.xl("unpause", domu.name, timeout=20)
    try:
        domu.channel.ping(ANSWERS_WITHIN)
    except RigError:
        domu.domain.close()
        domu.domain.open_console()
        domu.domain.open_channel(ANSWERS_WITHIN)
