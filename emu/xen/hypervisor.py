"""What Xen itself says of all domains at about one instant, asked for in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from emu.errors import RigError
from emu.machine.channel import Channel
from emu.xen import grants, memory
from emu.xen.host import parse_list

# Clearing the console ring keeps what is sent here small; the serial log has it all.
_SCRIPT = "xl dmesg -c > /dev/null; xl debug-keys ge; xl dmesg; echo @@; xl list"
_ENDED = "(null)"
"""What xl calls a domain that has ended and is kept by what others map of it."""


@dataclass(frozen=True)
class Hypervisor:
    """The mapped grants, the event channels, and the domains' names by number.

    One that has ended, but is still there, has a name that says so.
    """

    grants: grants.GrantDump
    ports: memory.Memory
    names: Mapping[int, str]


def parse(text: str) -> Hypervisor:
    """Read what the script printed. Raises RigError when a dump is missing."""
    log, separator, listing = text.partition("@@\n")
    if not separator or "Event channel information" not in log:
        raise RigError("Xen's console ring holds no dump of event channels")
    names = {
        info.domid: f"domain {info.domid}, which has ended" if info.name == _ENDED else info.name
        for info in parse_list(listing)
    }
    return Hypervisor(
        grants.parse(log.splitlines()), memory.parse_ports(log, names), MappingProxyType(names)
    )


def read(dom0: Channel) -> Hypervisor:
    """Ask Xen through its debug keys, and xl for the names."""
    return parse(dom0.run(_SCRIPT, timeout=30).stdout.decode(errors="replace"))
