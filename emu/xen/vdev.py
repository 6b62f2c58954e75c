"""Virtual block devices: how xl names one, the number that stands for it, and Linux' name for it.

All of it is from Xen's docs/man/xen-vbd-interface.7: 202 << 8 | disk << 4 | partition for the first
sixteen disks of xvd…, 1 << 28 | disk << 8 | partition for more disks or partitions than these hold,
3 or 22 << 8 | (disk & 1) << 6 | partition for hda to hdd, 8 << 8 | disk << 4 | partition for sda to
sdp. Linux calls all of them xvd….
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from emu.errors import InputError

XVD_MAJOR = 202
"""Linux' block major of xvd disks; a virtual device number is major << 8 | minor."""
_EXTENDED = 1 << 28
_IDE_MAJORS = (3, 22)
_SCSI_MAJOR = 8
_NAME = re.compile(r"(xvd|hd|sd)([a-z]{1,2})(\d{0,3})")
_MOST = {"xvd": (26 * 27, 255), "hd": (4, 63), "sd": (16, 15)}
"""Disks, and the largest partition, of each kind."""
_KINDS = "xvda to xvdzz, hda to hdd, sda to sdp, with the number of a partition or without"


@dataclass(frozen=True)
class Vdev:
    """A virtual block device: `kind` "xvd", "hd" or "sd", `disk` from 0, `partition` 0 for all."""

    kind: str
    disk: int
    partition: int = 0

    @property
    def number(self) -> int:
        """The number by which libxl and both drivers know it."""
        if self.kind == "hd":
            return _IDE_MAJORS[self.disk // 2] << 8 | (self.disk & 1) << 6 | self.partition
        if self.kind == "sd":
            return _SCSI_MAJOR << 8 | self.disk << 4 | self.partition
        if self.disk < 16 and self.partition < 16:
            return XVD_MAJOR << 8 | self.disk << 4 | self.partition
        return _EXTENDED | self.disk << 8 | self.partition

    @property
    def name(self) -> str:
        """Its name in xl's words."""
        return f"{self.kind}{_letters(self.disk)}{self.partition or ''}"

    @property
    def linux(self) -> str:
        """Linux' name for it, which has no word for a partition of hd… (xen_translate_vdev())."""
        part = self.partition if self.partition and self.kind != "hd" else ""
        return f"xvd{_letters(self.disk)}{part}"


def parse(name: str) -> Vdev:
    """The device of a name in xl's words. Raises InputError for any other name."""
    found = _NAME.fullmatch(name)
    if found:
        kind, letters, digits = found.groups()
        disks, partitions = _MOST[kind]
        vdev = Vdev(kind, _number(letters), int(digits or 0))
        if vdev.disk < disks and vdev.partition <= partitions and vdev.name == name:
            return vdev
    raise InputError(f"{name!r} is no disk name: {_KINDS}")


def of_number(number: int) -> Vdev | None:
    """The device of a virtual device number; None if it is of no disk."""
    if number >> 28 == _EXTENDED >> 28:
        return Vdev("xvd", (number & ~_EXTENDED) >> 8, number & 0xFF)
    major, minor = number >> 8, number & 0xFF
    if major == XVD_MAJOR:
        return Vdev("xvd", minor >> 4, minor & 15)
    if major == _SCSI_MAJOR:
        return Vdev("sd", minor >> 4, minor & 15)
    if major in _IDE_MAJORS and minor < 128:
        return Vdev("hd", _IDE_MAJORS.index(major) * 2 + (minor >> 6), minor & 63)
    return None


def virtual_device(name: str) -> int:
    """The number of a disk by its name in xl's words. Raises InputError for any other name."""
    return parse(name).number


def disk_names() -> Iterator[str]:
    """The names of a domU's disks in order: xvda to xvdz, xvdaa to xvdzz."""
    return (f"xvd{_letters(disk)}" for disk in range(_MOST["xvd"][0]))


def _letters(number: int) -> str:
    found = ""
    while number >= 0:
        number, letter = number // 26 - 1, string.ascii_lowercase[number % 26]
        found = letter + found
    return found


def _number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1
