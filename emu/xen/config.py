"""What a domU is made of: its xl configuration, and the numbers of its virtual block devices."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from emu.errors import InputError
from emu.images.xens import Xen
from emu.machine.spec import LINUX_OPTIONS

KINDS = ("pv", "pvh")
KERNEL = "/boot/domu/vmlinux"
INITRD = "/boot/domu/initrd"
XVD_MAJOR = 202
"""Linux' block major of xvd disks; a virtual device number is major << 8 | minor."""
FIRST_EXTENDED = 16
"""The first disk, counted from 0, that has no minor numbers of its own under that major."""
EXTENDED = 1 << 28
"""The bit of an extended virtual device number."""
_DISK = re.compile(r"xvd[a-z]{1,2}")


@dataclass(frozen=True)
class DomuConfig:
    """What a domU is made of; memory in MiB. `grant_frames` limits its grant table to so many
    frames of 512 grants (None: xl's default)."""

    name: str = "u1"
    kind: str = "pv"
    memory: int = 256
    vcpus: int = 1
    kernel_options: str = ""
    grant_frames: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a domU is pv or pvh, not {self.kind!r}")
        if self.memory < 64:
            raise InputError(f"a domU of {self.memory} MiB can't boot Linux: give it 64 or more")

    def render(self, xen: Xen) -> str:
        """The configuration as the xl of a Xen reads it (xl.cfg(5))."""
        # libxl starts a device model for every console past the first; ours is a small
        # back end that serves just that console (guest-images/agent/emu-channeld.c).
        values = {
            "name": self.name,
            "type": self.kind,
            "kernel": KERNEL,
            "ramdisk": INITRD,
            "memory": self.memory,
            "vcpus": self.vcpus,
            "cmdline": f"console=hvc0 {LINUX_OPTIONS} {self.kernel_options}".strip(),
            "on_poweroff": "destroy",
            "on_reboot": "destroy",
            "on_crash": "preserve",
            "channel": ["name=emu,connection=socket,path=/run/emu/channel"] * xen.channels,
            "device_model_version": "qemu-xen",
            "device_model_override": "/usr/lib/emu/emu-channeld",
        }
        if self.grant_frames is not None:
            values["max_grant_frames"] = self.grant_frames
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def virtual_device(disk: str) -> int:
    """The number libxl gives a disk named as in Linux: `xvda` to `xvdp`, `xvdq` … `xvdzz` beyond.

    Xen's docs/man/xen-vbd-interface.7: 202 << 8 | disk << 4 up to the sixteenth disk, and
    1 << 28 | disk << 8 after it. Raises InputError for any other name.
    """
    if not _DISK.fullmatch(disk):
        raise InputError(f"{disk!r} is no disk name: xvda to xvdz, then xvdaa to xvdzz")
    number = 0
    for letter in disk.removeprefix("xvd"):
        number = number * 26 + ord(letter) - ord("a") + 1
    number -= 1
    return XVD_MAJOR << 8 | number << 4 if number < FIRST_EXTENDED else EXTENDED | number << 8


def disk_name(number: int) -> str | None:
    """The name of the disk that has a virtual device number; None if it is none of `xvd…`."""
    if number >> 28 == EXTENDED >> 28:
        number = (number & ~EXTENDED) >> 8
    elif number >> 8 == XVD_MAJOR:
        number = (number & 0xFF) >> 4
    else:
        return None
    letters = ""
    while number >= 0:
        number, letter = number // 26 - 1, chr(ord("a") + number % 26)
        letters = letter + letters
    return f"xvd{letters}"


def disk_names() -> Iterator[str]:
    """The names of a domU's disks in order: xvda to xvdz, xvdaa to xvdzz."""
    letters = string.ascii_lowercase
    yield from (f"xvd{letter}" for letter in letters)
    yield from (f"xvd{first}{second}" for first in letters for second in letters)
