"""What the two kernels keep for disks, beside grants and memory, as lines to be compared.

The LUN's device is open as often as its initiator's module is used (sd_open() takes a reference);
where that is no module, opens do not show.
"""

from __future__ import annotations

from collections import Counter

from emu.channel.channel import Channel
from emu.deadline import Deadline, poll
from emu.rig import RigDomu, RigHost

OPEN = "dom0: open of the LUN"
GONE_WITHIN = 10.0
"""Seconds until both ends have done their last steps, for which no verb waits."""
_NUMBER = """
number() {
    [ -e $2 ] || return 0
    for n in $(seq $(cat $2)); do echo "$1"; done
}
"""
_BACK = f"""{_NUMBER}
cat /proc/[0-9]*/comm 2> /dev/null | grep -E '^[0-9]+[.][a-z]' | sed 's/^/kernel thread /'
grep -o 'blkif-backend' /proc/interrupts | sed 's/^/interrupt /'
ls /sys/bus/xen-backend/devices | grep vbd | sed 's/^/device /'
ls /sys/kernel/debug/xen-blkback 2> /dev/null | sed 's/^/directory in debugfs /'
xenstore-ls -f /local/domain/0/backend/vbd 2> /dev/null | sed 's/ = .*//; s/^/key /'
number 'open of the LUN' /sys/module/iscsi_tcp/refcnt
number 'use of xen_blkback' /sys/module/xen_blkback/refcnt
true
"""
_FRONT = f"""{_NUMBER}
ls /sys/block | grep xvd | sed 's/^/disk /'
ls /sys/bus/xen/devices | grep vbd | sed 's/^/device /'
ls /sys/kernel/debug/xen-blkfront 2> /dev/null | grep vbd | sed 's/^/directory in debugfs /'
grep -o ' blkif$' /proc/interrupts | sed 's/^/interrupt/'
number 'use of xen_blkfront' /sys/module/xen_blkfront/refcnt
true
"""

Kept = Counter[str]


def kept(host: RigHost, domu: RigDomu | None = None) -> Kept:
    """What dom0 keeps now, and the domU."""
    lines = kept_by_back(host.dom0)
    return lines + _lines(domu.channel, _FRONT) if domu else lines


def kept_by_back(guest: Channel) -> Kept:
    """What the guest keeps now for disks that it serves: dom0, or another domU."""
    return _lines(guest, _BACK)


def _lines(guest: Channel, script: str) -> Kept:
    text = guest.run(script, timeout=30).text
    return Counter(f"{guest.name}: {line}" for line in text.splitlines())


def more_than(before: Kept, host: RigHost, domu: RigDomu | None = None) -> list[str]:
    """What there still is more than `before`, when all has had its time to go."""
    until = Deadline("both ends' last steps", GONE_WITHIN)
    left = poll(lambda: kept(host, domu) - before, until, until=lambda left: not left, pause=0.2)
    return [f"{name} ({count})" if count > 1 else name for name, count in left.items()]
