"""What Xen itself reports of all domains at about one instant, read in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from emu.channel.channel import Channel
from emu.errors import RigError
from emu.xen import grants, memory
from emu.xen.host import parse_list

_SCRIPT = f"""
{grants.DUMP}; echo @@
domains=$(xl list); echo "$domains"; echo @@
for domid in $(echo "$domains" | awk 'NR > 1 {{ print $2 }}'); do
    echo "domain $domid"; lsevtchn $domid
done
"""
_ENDED = "(null)"
"""What xl calls a domain that has ended and is kept by what others map of it."""


@dataclass(frozen=True)
class Hypervisor:
    """The mapped grants, the event channels, and the domains' names by number.

    One that has ended, but is still there, is named as such.
    """

    grants: grants.GrantDump
    ports: memory.Memory
    names: Mapping[int, str]


def parse(text: str) -> Hypervisor:
    """Read what the script printed. Raises RigError when a dump is missing."""
    parts = text.split("@@\n")
    if len(parts) != 3:
        raise RigError("dom0 could not ask Xen", lines=text.splitlines()[-3:])
    log, listing, ports = parts
    names = {
        info.domid: f"domain {info.domid}, which has ended" if info.name == _ENDED else info.name
        for info in parse_list(listing)
    }
    return Hypervisor(
        grants.parse(log.splitlines()), memory.parse_ports(ports, names), MappingProxyType(names)
    )


def read(dom0: Channel) -> Hypervisor:
    """Ask Xen through a debug key, xl for the names, and Xen's own lsevtchn."""
    return parse(dom0.run(_SCRIPT, timeout=30).stdout.decode(errors="replace"))
