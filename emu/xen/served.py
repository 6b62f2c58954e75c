"""Disks that a domU serves to another: a driver domain, with the rig in place of its `xl devd`.

libxl makes the keys of both ends, and leaves to the driver domain's own tool stack what the hotplug
script does, and to remove the back end's keys (libxl_device.c: device_hotplug(),
device_destroy_be_watch_cb()). No `driver_domain` in its configuration is needed for that.
"""

from __future__ import annotations

from emu.channel.channel import CommandFailed
from emu.errors import NotHeld
from emu.xen.disk import DiskOptions
from emu.xen.dmesg import log_tail
from emu.xen.domain import Domain

CLOSED_WITHIN = 8.0
"""Seconds until the back end has closed: xl gives up after ten."""
_XL_WITHIN = 20.0


def attach(domain: Domain, server: Domain, device: str, disk: str, options: DiskOptions) -> None:
    """Give `domain` the disk that `server` has as `device`; returns when the back end has it.

    Raises NotHeld with xl's words when there comes no back end.
    """
    at = server.channel.run(["stat", "-c", "%t:%T", device], timeout=20).text.strip()
    words = f"{options.words(device, disk)},backend={server.name}"
    domain.servers[disk] = server
    try:
        domain.host.xl("block-attach", str(domain.domid), words, timeout=60)
    except CommandFailed as failed:
        raise NotHeld(
            f"domU {server.name} made no back end for {disk} of domU {domain.name}",
            lines=[*failed.lines, *log_tail(server.channel)],
        ) from None
    back = domain.back_path(disk)
    domain.host.write({f"{back}/physical-device": at, f"{back}/hotplug-status": "connected"})


def detach(domain: Domain, disk: str) -> None:
    """Take such a disk away and wait until both ends have closed it, as `Domain.detach`."""
    command = ["xl", "block-detach", str(domain.domid), disk]
    with domain.host.dom0.spawn(command) as xl:
        domain.wait_state("back", "Closed", "absent", disk=disk, timeout=CLOSED_WITHIN)
        forget(domain, disk)
        ended = xl.wait(_XL_WITHIN)
    if ended.status != 0:
        said = b"".join(iter(lambda: xl.read(stream=2), b"")).decode(errors="replace")
        raise NotHeld(f"xl block-detach of {disk} {ended}", lines=said.splitlines()[-5:])


def forget(domain: Domain, disk: str) -> None:
    """Remove the back end's directory, and those above that are empty then."""
    path = domain.back_path(disk)
    top = f"/local/domain/{domain.back_domid(disk)}"
    domain.host.remove(path)
    domain.servers.pop(disk, None)
    while (path := path.rpartition("/")[0]) != top:
        if domain.host.xenstore(path).children():
            return
        domain.host.remove(path)
