"""Keys in xenstore written by hand: what a back end offers, and a front end without a driver.

domu.offer(lun)                                     # no front end is loaded
front = FrontEndKeys(domu)
front.publish({"event-channel": 1, "ring-ref": 8})
assert "mapping in shared page" in front.refusal()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from emu.rig.disks import FIRST_DISK, DomuDisks
from emu.rig.lun import RigLun
from emu.xen import xenstore

Keys = Literal["order", "pages", "both", "none"]
"""Which keys an offer is in: `max-ring-page-order`, `max-ring-pages` (Xen's public header
io/blkif.h)."""


def offer(domu: DomuDisks, disk: RigLun | str, keys: Keys, pages: int) -> None:
    """Let the back end of a disk that is not connected offer rings of `pages` in `keys` alone."""
    offer_values(
        domu,
        disk,
        order=pages.bit_length() - 1 if keys in ("order", "both") else None,
        pages=pages if keys in ("pages", "both") else None,
    )


def offer_values(
    domu: DomuDisks, disk: RigLun | str, *, order: int | None, pages: int | None
) -> None:
    """Let the back end of a disk offer any numbers; None: it has no such key."""
    root = domu.domain.back_path(domu.disk(disk))
    values = {f"{root}/max-ring-page-order": order, f"{root}/max-ring-pages": pages}
    domu.host.xen.write({path: value for path, value in values.items() if value is not None})
    domu.host.xen.remove(*(path for path, value in values.items() if value is None))


class FrontEndKeys:
    """The front end of a disk that has no driver: dom0 writes its keys and its state."""

    def __init__(self, domu: DomuDisks, disk: RigLun | str = FIRST_DISK) -> None:
        self.domu = domu
        self.disk = domu.disk(disk)

    @property
    def root(self) -> str:
        """Its directory in xenstore."""
        return self.domu.domain.front_path(self.disk)

    def publish(self, keys: Mapping[str, str | int], state: str = "Initialised") -> None:
        """Write keys in one transaction, then the state, by its name in `XENBUS_STATES`."""
        self.domu.host.xen.write({f"{self.root}/{key}": value for key, value in keys.items()})
        self.set_state(state)

    def remove(self, *keys: str) -> None:
        """Remove keys."""
        self.domu.host.xen.remove(*(f"{self.root}/{key}" for key in keys))

    def set_state(self, state: str) -> None:
        """Write the state, by its name in `XENBUS_STATES`."""
        self.domu.host.xen.write({f"{self.root}/state": xenstore.state_number(state)})

    def refusal(self) -> str:
        """Wait until the back end has refused the connection; the error it reported.

        Raises NotHeld when it has not.
        """
        self.domu.wait_back("Closing", disk=self.disk)
        return self.domu.domain.error("back", self.disk)

    def reset(self) -> None:
        """Close a refused connection; returns when the back end waits for another one."""
        self.set_state("Closed")
        self.domu.wait_back("Closed", disk=self.disk)
        self.set_state("Initialising")
        self.domu.wait_back("InitWait", disk=self.disk)
