"""The vCPUs of a domU: added and taken away while it runs, and followed by its kernel.

xl writes /local/domain/<domid>/cpu/<n>/availability; Linux' drivers/xen/cpu_hotplug.c watches that.
It takes a CPU away by itself, but only makes one known that is new: to put it to use
(/sys/devices/system/cpu/cpu<n>/online) is for user space, where distributions have a udev rule.
"""

from __future__ import annotations

from emu.channel.channel import CommandTimeout
from emu.errors import InputError, NotHeld
from emu.xen.dmesg import log_tail
from emu.xen.domain import Domain

FOLLOWED_WITHIN = 20.0
"""Seconds until a guest uses as many CPUs as it was given."""
_ONLINE = 'now=$(grep -c ^processor /proc/cpuinfo); echo "$now CPUs" >&2; [ $now = $1 ]'
_ADD = f"""{{
    for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
        [ "$(cat $cpu/online 2> /dev/null)" != 0 ] || echo 1 > $cpu/online
    done
    {_ONLINE}
}}"""
_TAKE = f"{{ {_ONLINE}; }}"


def most(domain: Domain) -> int:
    """How many vCPUs a domU can have: as many as it was made with."""
    return len(domain.host.xenstore(f"/local/domain/{domain.domid}/cpu").children())


def online(domain: Domain) -> int:
    """How many CPUs the domU's kernel uses now."""
    return int(domain.channel.run("grep -c ^processor /proc/cpuinfo", timeout=20).text)


def set_vcpus(domain: Domain, number: int) -> None:
    """Give a domU `number` vCPUs; returns when its kernel uses just as many.

    Raises InputError for fewer than 1 or more than it can have, NotHeld with its kernel's words
    when it does not follow.
    """
    limit = most(domain)
    if not 1 <= number <= limit:
        raise InputError(
            f"domU {domain.name} has 1 to {limit} vCPUs, not {number}",
            hint="max_vcpus is what it is made for",
        )
    now = online(domain)
    # Its vCPUs share one physical CPU, which xl refuses otherwise.
    domain.host.xl("vcpu-set", "--ignore-host", str(domain.domid), str(number))
    condition, what = (_ADD if number > now else _TAKE), f"{number} CPUs in use"
    try:
        domain.channel.wait_until(condition, what, FOLLOWED_WITHIN, str(number))
    except CommandTimeout as timeout:
        raise NotHeld(
            f"domU {domain.name} was given {number} vCPUs and uses {online(domain)}: "
            f"{timeout.message}",
            lines=log_tail(domain.channel),
        ) from None
