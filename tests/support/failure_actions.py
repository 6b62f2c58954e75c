"""What is done with a disk, or with a driver, while one of its calls fails."""

from __future__ import annotations

import programs
from disk_by_hand import ENDED
from failing_calls import FailingCalls
from failure_checks import Outcome, Sweep

from emu.channel.channel import CommandTimeout
from emu.deadline import Deadline, poll
from emu.errors import NotHeld
from emu.images.modules import End
from emu.rig import FIRST_DISK, RigDomu, RigHost

ANSWERED_WITHIN = 10.0
"""Seconds in which a request of a disk that did not resume ends."""
RESIZED_WITHIN = 10.0
"""Seconds in which the domU knows of a new size, or an end has said why not."""
_SIZES = 16384, 32768
"""Sectors of a disk that is resized."""


def bind_again(sweep: Sweep) -> Outcome:
    """Unbind the front end's driver from the disk, and bind it again: another connection."""
    domu = sweep.domu
    domu.unbind_front(FIRST_DISK)
    domu.run(f"echo {domu.device('front')} > /sys/bus/xen/drivers/vbd/bind", timeout=30)
    return sweep.used(sweep.disk.wait())


def save_and_restore(sweep: Sweep) -> Outcome:
    """Save the domU and restore it: the front end resumes. If not, the disk's requests fail."""
    sweep.domu.save_and_restore()
    states = sweep.disk.wait(ENDED)
    if states.connected:
        return sweep.used(states)
    words = ["dd", f"if=/dev/{FIRST_DISK}", "of=/dev/null", "count=1", "iflag=direct"]
    try:
        sweep.domu.channel.run(words, timeout=ANSWERED_WITHIN, check=False)
    except CommandTimeout:
        return Outcome(states, trouble="a read of the disk is never answered")
    return Outcome(states)


class Resizing:
    """A disk that is a part of the LUN, whose size changes while it is connected."""

    def __init__(self, host: RigHost) -> None:
        self.host = host
        self.sectors = _SIZES[0]
        self.program = programs.put("partition", host.dom0, host.cache)
        self._partition("add", self.sectors)
        self.device = f"{host.lun.device}1"

    def __call__(self, sweep: Sweep) -> Outcome:
        old, self.sectors = self.sectors, sum(_SIZES) - self.sectors
        self._partition("resize", self.sectors)
        until = Deadline("the new size", RESIZED_WITHIN)
        size = poll(
            lambda: self._size(sweep),
            until,
            until=lambda size: size == self.sectors or sweep.said(),
        )
        wrong = f"the disk has {size} sectors; it had {old}, and now has {self.sectors}"
        trouble = wrong if size not in (old, self.sectors) else ""
        return Outcome(sweep.disk.states(), size == self.sectors, trouble)

    @staticmethod
    def _size(sweep: Sweep) -> int:
        return int(sweep.domu.run(f"cat /sys/block/{FIRST_DISK}/size"))

    def _partition(self, verb: str, sectors: int) -> None:
        words = [self.program, self.host.lun.device, verb, str(sectors)]
        self.host.dom0.run(words, timeout=20)


_VIEWS = "debugfs_"
"""Drivers are to ignore that debugfs fails (debugfs_create_dir(), fs/debugfs/inode.c)."""


def load_fails(domu: RigDomu, end: End, calls: FailingCalls, gone: str) -> list[str]:
    """Load an end's driver anew; each of the calls it makes fails once. What is wrong with it.

    `gone` is a shell's condition, for nothing to be left of a driver that was refused.
    """
    calls.watch()
    domu.load(end)
    wrong = []
    made = calls.made()
    for call in made:
        # busybox' insmod tries another system call when the first one fails.
        calls.fail(call, 1, times=2)
        try:
            domu.load(end)
            refused = ""
        except NotHeld as error:
            refused = error.message
        failed = calls.has_failed()
        calls.watch()
        print(f"{call}: {refused or 'loaded'}", flush=True)
        if not failed:
            wrong.append(f"{call}: there was no such call")
        elif not refused and not call.function.startswith(_VIEWS):
            wrong.append(f"{call} failed, and the driver was loaded all the same")
        left = domu.channel_of(end).run(["sh", "-c", gone], timeout=20, check=False).status
        if refused and left:
            wrong.append(f"{call} failed, the driver was not loaded, and left behind: {gone}")
    try:
        domu.load(end)
    except NotHeld as error:
        wrong.append(f"the driver can't be loaded any more: {error.message}")
    return wrong if made else ["the driver calls nothing while it is loaded"]
