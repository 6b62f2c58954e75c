"""What dom0 and a domU are made of: Xen's command line, a domU's xl configuration."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from emu.errors import InputError
from emu.images.xens import Xen
from emu.machine.spec import DOM0_MEMORY, LINUX_OPTIONS

KINDS = ("pv", "pvh")
KERNEL = "/boot/domu/vmlinux"
INITRD = "/boot/domu/initrd"
DOM0 = "Domain-0"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_LEAST_DOM0 = 256
_MOST_VCPUS = 8


@dataclass(frozen=True)
class Dom0Config:
    """What dom0 is made of; memory in MiB. Its vCPUs share one physical CPU. `options` are added to
    its kernel's command line.
    """

    memory: int = DOM0_MEMORY
    vcpus: int = 1
    options: str = ""

    def __post_init__(self) -> None:
        if self.memory < _LEAST_DOM0:
            raise InputError(
                f"a dom0 of {self.memory} MiB can't boot: give it {_LEAST_DOM0} or more"
            )
        if not 1 <= self.vcpus <= _MOST_VCPUS:
            raise InputError(f"dom0 has 1 to {_MOST_VCPUS} vCPUs, not {self.vcpus}")
        check_options(self.options)


def check_options(options: str) -> None:
    """Raise InputError for what is no part of a command line."""
    if not options.isprintable() or options != options.strip():
        raise InputError(f"{options!r} is no list of options: words in one line")


@dataclass(frozen=True)
class DomuConfig:
    """What a domU is made of; memory in MiB. `max_vcpus` is how many it can be given while it runs
    (None: `vcpus`); `grant_frames` limits its grant table to so many frames of 512 grants (None:
    xl's default). `disks` are those it boots with, in xl's words (`emu.xen.disk`)."""

    name: str = "u1"
    kind: str = "pv"
    memory: int = 256
    vcpus: int = 1
    kernel_options: str = ""
    grant_frames: int | None = None
    max_vcpus: int | None = None
    disks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # JSON has no tuples, and a configuration is hashed.
        object.__setattr__(self, "disks", tuple(self.disks))
        if not _NAME.fullmatch(self.name) or self.name == DOM0:
            raise InputError(
                f"{self.name!r} is no name of a domU: letters, digits, '.', '_' and '-', 31 at most"
            )
        if self.kind not in KINDS:
            raise InputError(f"a domU is pv or pvh, not {self.kind!r}")
        if self.memory < 64:
            raise InputError(f"a domU of {self.memory} MiB can't boot Linux: give it 64 or more")
        if not 1 <= self.vcpus <= (self.max_vcpus or _MOST_VCPUS) <= _MOST_VCPUS:
            raise InputError(
                f"a domU has 1 to {_MOST_VCPUS} vCPUs, and no more than it can have, not "
                f"{self.vcpus} of {self.max_vcpus or _MOST_VCPUS}"
            )

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
        if self.max_vcpus is not None:
            values["maxvcpus"] = self.max_vcpus
        if self.disks:
            values["disk"] = list(self.disks)
        if self.grant_frames is not None:
            values["max_grant_frames"] = self.grant_frames
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
