"""A disk as xl gives it to a domU (xl-disk-configuration(5))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emu.errors import InputError
from emu.xen import vdev

Mode = Literal["r", "w"]
_SCRIPT = "block-emu"


@dataclass(frozen=True)
class DiskOptions:
    """How a domU gets a disk.

    `mode` "r": it may not write. `cdrom`: as a CD-ROM, which only mode "r" can be. `discard`:
    whether the back end may offer discards (None: as the LUN has them). `trusted` False: its back
    end is not to see more of the domU's memory than it is to move; xl 4.17 has no word for that,
    so it is written to xenstore, and forgotten when the domU is saved. `partition`: that of the
    LUN, as dom0 has it, in place of the whole.
    """

    mode: Mode = "w"
    cdrom: bool = False
    discard: bool | None = None
    trusted: bool = True
    partition: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("r", "w"):
            raise InputError(f"a disk's mode is r or w, not {self.mode!r}")
        if self.cdrom and self.mode != "r":
            raise InputError("a CD-ROM can't be written", hint='mode="r"')
        if self.partition is not None and self.partition < 1:
            raise InputError(f"the first partition has the number 1, not {self.partition}")

    def words(self, device: str, name: str) -> str:
        """xl's words for a device of dom0 as the disk `name`. Raises InputError for its name."""
        vdev.parse(name)
        found = [f"phy:{device}{self.partition or ''}", name, self.mode]
        if self.cdrom:
            found.append("devtype=cdrom")
        if self.discard is not None:
            found.append("discard" if self.discard else "no-discard")
        return ",".join([*found, f"script={_SCRIPT}"])


PLAIN = DiskOptions()
