"""Another size for a LUN that is in use."""

from __future__ import annotations

import re

from emu.channel.channel import Channel
from emu.errors import RigError
from emu.xen.lun import SECTOR, Lun, check_size, step

# tcmu tells the server, which cuts its file or lengthens it (dev_size: Linux'
# drivers/target/target_core_user.c). dom0's disk learns of it by the initiator's rescan.
_RESIZE = """
set -e
[ $4 = thin ] || fallocate -l $2 {store}/$1.img
echo $2 > {configfs}/core/user_0/$1/attrib/dev_size
echo 1 > /sys/block/$3/device/rescan
cat /sys/block/$3/size
"""
_ALLOCATED = "stat -c '%b %B' {store}/$1.img"


def resize(dom0: Channel, lun: Lun, size: int) -> None:
    """Give a LUN `size` bytes; returns when dom0's disk has them.

    Raises InputError as `emu.xen.lun.create`, RigError where dom0's disk has another size then.
    """
    check_size(size, lun.sector)
    words = (lun.name, str(size), lun.block, "thin" if lun.thin else "full")
    answer = step(dom0, f"resizing LUN {lun.name}", _RESIZE, *words)
    sectors = re.fullmatch(r"\d+", answer.strip())
    if not sectors or int(sectors[0]) * SECTOR != size:
        raise RigError(
            f"LUN {lun.name} has {size} bytes now, and {lun.device} {answer.strip()} sectors of 512"
        )


def allocated(dom0: Channel, lun: Lun) -> int:
    """How many bytes its file occupies in dom0. Raises RigError with dom0's output."""
    answer = step(dom0, f"looking at the file of LUN {lun.name}", _ALLOCATED, lun.name)
    blocks, unit = map(int, answer.split())
    return blocks * unit
