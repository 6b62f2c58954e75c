"""A LUN with a partition table: one partition of 2 MiB at 1 MiB."""

from __future__ import annotations

from emu.rig import RigLun

START, SIZE = 2048, 4096
"""Sectors of 512 bytes."""
_ENTRY = "printf '\\0\\0\\0\\0\\203\\0\\0\\0\\0\\10\\0\\0\\0\\20\\0\\0'"
_TABLE = f"""
dd if=/dev/zero of=$1 bs=512 count=1
{_ENTRY} | dd of=$1 bs=1 seek=446
printf 'U\\252' | dd of=$1 bs=1 seek=510
sync
"""


def partition(lun: RigLun) -> None:
    """Write the table, in dom0."""
    lun.dom0.run(["sh", "-c", _TABLE, "sh", lun.device], timeout=20)
