"""The configuration of a machine, and the QEMU command line for it.

Every file is passed to QEMU as an inherited descriptor and named `/proc/self/fd/N`: paths
may hold spaces and commas (`-initrd` splits at both), and may be replaced or removed once they
are open. The same spec gives the same command line, up to N.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Accel = Literal["tcg", "kvm"]
Clock = Literal["wall", "icount"]

TCG_CPU = "max,-smap,-smep,-rdtscp,-xsave"
"""Without all that any QEMU is known to get wrong: where `emu.emulator.faults` was not asked."""
KVM_CPU = "host"

DOM0_MEMORY = 1024
"""MiB of dom0, where nothing else is asked for."""


def xen_cmdline(dom0_memory: int = DOM0_MEMORY, dom0_vcpus: int = 1, options: str = "") -> str:
    """Xen's command line; `options` are added to ours.

    Without mitigations, which are expensive under emulation (each entry from a PV guest makes 32
    calls to fill a return stack that is not there), and without "fast" string instructions: TCG
    copies one byte of a `rep movsb` at a time, eight of a `rep movsq`.
    """
    words = [
        f"console=com1 com1=115200,8n1 dom0_mem={dom0_memory}M,max:{dom0_memory}M",
        "loglvl=all guest_loglvl=all noreboot bootscrub=0 conring_size=1M spec-ctrl=no",
        "cpuid=no-erms,no-fsrm",
        *([f"dom0_max_vcpus={dom0_vcpus}"] if dom0_vcpus > 1 else []),
        options,
    ]
    return " ".join(filter(None, words))


XEN_CMDLINE = xen_cmdline()

LINUX_OPTIONS = "mitigations=off norandmaps init_on_alloc=0 audit=0 apparmor=0"
"""For both guests' kernels. A program at the same addresses is translated once, not each time it
is started. Pages are not cleared: a driver that reads what it did not write is noticed.
Mitigations as in `xen_cmdline`."""

BASE_CMDLINE = f"console=ttyS1,115200 earlyprintk=xen {LINUX_OPTIONS}"


@dataclass(frozen=True)
class Disk:
    """A virtio-blk disk of dom0: vda, vdb, … in the order of `MachineSpec.disks`.

    What the guest writes goes to an overlay that ends with QEMU (`throwaway`), unless the
    disk is read-only or `throwaway` is off.
    """

    path: Path
    format: Literal["raw", "qcow2"] = "raw"
    readonly: bool = False
    serial: str = ""
    throwaway: bool = True

    @property
    def overlaid(self) -> bool:
        return self.throwaway and not self.readonly


@dataclass(frozen=True)
class Recording:
    """QEMU's log of all input to a machine: written to `path`, or read from it.

    The log is complete when QEMU has quit; one that was killed leaves none.
    """

    path: Path
    mode: Literal["record", "replay"]


@dataclass(frozen=True)
class MachineSpec:
    """One emulated PC: what it boots, what it has, how it runs.

    `dom0_cmdline` is written as the kernel reads it (commas not doubled). Without
    `dom0_kernel` Xen starts, says its banner and panics; without `xen` nothing boots.
    `ports` are the names of virtio-serial ports. `mac` is the address of a network card that
    hangs on the link `wire`, a socket pair to another machine (none without an address).
    `tb_size` (MiB) and `thread` are TCG's. `recording` needs instruction time, and a QEMU with
    our patches; what it can't do is in qemu-patches/REPLAY.md.
    """

    xen: Path | None
    dom0_kernel: Path | None = None
    initrd: Path | None = None
    xen_cmdline: str = XEN_CMDLINE
    dom0_cmdline: str = BASE_CMDLINE
    disks: tuple[Disk, ...] = ()
    ports: tuple[str, ...] = ()
    mac: str = ""
    qemu: str = "qemu-system-x86_64"
    accel: Accel = "tcg"
    clock: Clock = "wall"
    memory_mib: int = 2048
    cpu: str = ""
    smp: int = 1
    machine: Literal["pc", "q35"] = "pc"
    tb_size: int | None = None
    thread: Literal["single", "multi", ""] = ""
    recording: Recording | None = None
    extra: tuple[str, ...] = field(default=())

    @property
    def cpu_model(self) -> str:
        """QEMU's `-cpu`: as given, or what the accelerator needs."""
        return self.cpu or (TCG_CPU if self.accel == "tcg" else KVM_CPU)

    def __post_init__(self) -> None:
        if self.clock == "icount" and self.accel != "tcg":
            raise ValueError("instruction time needs TCG")
        if self.clock == "icount" and self.thread == "multi":
            raise ValueError("instruction time runs all CPUs in one thread")
        if self.recording and self.clock != "icount":
            raise ValueError("a recording needs instruction time")
        if (self.initrd and not self.dom0_kernel) or (self.dom0_kernel and not self.xen):
            raise ValueError("an initrd needs a kernel, and a kernel needs Xen")


@dataclass(frozen=True)
class QemuFds:
    """The descriptors QEMU inherits, by what they are for.

    `files`: xen, dom0, initrd, ram, one per disk layer (`disk0.0` is disk 0's base).
    `links`: sockets qmp, com1, com2, one per port (`port.<name>`), and `wire`.
    """

    files: Mapping[str, int]
    links: Mapping[str, int]

    def path(self, name: str) -> str:
        return f"/proc/self/fd/{self.files[name]}"


def disk_layers(index: int, count: int) -> list[str]:
    """The names of a disk's layers, base first: `disk0.0`, `disk0.1`."""
    return [f"disk{index}.{layer}" for layer in range(count)]


def build_argv(
    spec: MachineSpec,
    fds: QemuFds,
    *,
    layers: tuple[int, ...] = (),
    ram_shared: bool = False,
    incoming: bool = False,
) -> list[str]:
    """QEMU's arguments for `spec`.

    `layers[i]` counts the files disk i consists of: its base and the overlays on it.
    `ram_shared`: RAM is the file `ram` itself (a machine to be saved); with `incoming`,
    RAM is a private copy of that file and the state comes in later.
    """
    argv = [
        spec.qemu,
        *("-name", "emu-xen-block", "-no-user-config", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-msg", "timestamp=off"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", f"{spec.machine},memory-backend=ram,vmport=off,dump-guest-core=off"),
        *("-accel", _accel(spec)),
        *("-cpu", spec.cpu_model),
        *("-smp", str(spec.smp)),
        *("-m", f"{spec.memory_mib}M"),
        *("-object", _json(_ram(spec, fds, ram_shared))),
    ]
    if spec.clock == "icount":
        # The real-time clock follows instructions as well: a guest that polls it runs alike.
        argv += ["-icount", _icount(spec.recording), "-rtc", "clock=vm"]
    argv += _link("qmp", fds.links["qmp"])
    argv += ["-mon", "chardev=qmp,mode=control"]
    for port in ("com1", "com2"):
        argv += _link(port, fds.links[port])
        argv += ["-device", _json({"driver": "isa-serial", "chardev": port, "id": f"{port}-uart"})]
    if spec.xen:
        argv += ["-kernel", fds.path("xen"), "-append", spec.xen_cmdline]
    if spec.dom0_kernel:
        argv += ["-initrd", _modules(spec, fds)]
    for index, disk in enumerate(spec.disks):
        count = layers[index] if layers else 1
        argv += _disk(index, disk, count, fds, recorded=spec.recording is not None)
    if spec.ports:
        argv += ["-device", _json({"driver": "virtio-serial-pci", "id": "ports"})]
    for index, name in enumerate(spec.ports):
        argv += _link(f"port{index}", fds.links[f"port.{name}"])
        device = {"driver": "virtserialport", "bus": "ports.0", "nr": index + 1, "name": name}
        argv += ["-device", _json({**device, "chardev": f"port{index}", "id": f"vport{index}"})]
    if spec.mac:
        argv += _card(spec.mac, fds.links["wire"])
    argv += spec.extra
    if incoming:
        argv += ["-incoming", "defer"]
    return argv


def _icount(recording: Recording | None) -> str:
    options = "shift=0,sleep=off"
    if recording:
        path = str(recording.path.absolute()).replace(",", ",,")
        options += f",rr={recording.mode},rrfile={path}"
    return options


def _accel(spec: MachineSpec) -> str:
    if spec.accel == "kvm":
        return "kvm"
    thread = "single" if spec.clock == "icount" else spec.thread
    options = ["tcg"]
    options += [f"thread={thread}"] if thread else []
    options += [f"tb-size={spec.tb_size}"] if spec.tb_size else []
    return ",".join(options)


def _ram(spec: MachineSpec, fds: QemuFds, shared: bool) -> dict[str, object]:
    size = spec.memory_mib * 2**20
    if "ram" not in fds.files:
        return {"qom-type": "memory-backend-ram", "id": "ram", "size": size}
    path = fds.path("ram")
    return {
        "qom-type": "memory-backend-file",
        **{"id": "ram", "size": size, "mem-path": path, "share": shared},
    }


def _link(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd}"]


def _card(mac: str, wire: int) -> list[str]:
    # Each frame goes over the socket with its length before it. No boot over the network.
    card = {"driver": "virtio-net-pci", "netdev": "wire", "mac": mac, "romfile": "", "id": "card"}
    return ["-netdev", f"socket,id=wire,fd={wire}", "-device", _json(card)]


def _modules(spec: MachineSpec, fds: QemuFds) -> str:
    # One multiboot module per comma; Xen passes over a module's first word, its path.
    kernel = f"{fds.path('dom0')} {spec.dom0_cmdline}".replace(",", ",,")
    return kernel + ("," + fds.path("initrd") if spec.initrd else "")


def _disk(
    index: int, disk: Disk, layers: int, fds: QemuFds, *, recorded: bool = False
) -> list[str]:
    argv: list[str] = []
    backing: str | None = None
    for layer, name in enumerate(disk_layers(index, layers)):
        readonly = disk.readonly or layer < layers - 1
        node: dict[str, object] = {
            "driver": disk.format if layer == 0 else "qcow2",
            "node-name": name.replace(".", "-"),
            "read-only": readonly,
            "discard": "unmap",
            "file": {
                "driver": "file",
                "filename": fds.path(name),
                "read-only": readonly,
                "discard": "unmap",
                "locking": "off" if readonly else "auto",
            },
        }
        if layer:
            node["backing"] = backing
            # The overlay ends with QEMU: nobody reads it after a crash of this machine.
            node["cache"] = {"no-flush": True}
        backing = str(node["node-name"])
        argv += ["-blockdev", _json(node)]
    if recorded:
        # It delays the completion of requests until it is in the log, or as the log has it.
        filter_ = {"driver": "blkreplay", "node-name": f"replay{index}", "image": backing}
        argv += ["-blockdev", _json({**filter_, "read-only": disk.readonly})]
        backing = f"replay{index}"
    device: dict[str, object] = {"driver": "virtio-blk-pci", "drive": backing, "id": f"disk{index}"}
    if disk.serial:
        device["serial"] = disk.serial
    return [*argv, "-device", _json(device)]


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))
