"""Which accelerator runs Xen here: KVM only after Xen was seen to start under it.

/dev/kvm may exist, open, even start QEMU, and still be unable to run a hypervisor (nested
on a machine that emulates half of it). Only Xen's banner proves it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emu.errors import InputError, RigError
from emu.hosttools import installs
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.machine.identity import host_cpu, qemu_version
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import Accel, MachineSpec

Requested = Literal["auto", "tcg", "kvm"]

BANNER_TIMEOUT = 8.0
"""Seconds for Xen's banner; under a KVM that works it comes in one, under TCG in a half."""
DEVICE = Path("/dev/kvm")
_BEFORE = re.compile(r"^(?:.*\berror: |qemu-system-x86_64: )")


@dataclass(frozen=True)
class AccelChoice:
    """The accelerator that will run, and why: one line for people."""

    name: Accel
    reason: str

    def __str__(self) -> str:
        return f"{self.name.upper()} ({self.reason})"


_KVM_WORKS = AccelChoice("kvm", "Xen starts under it")


def choose(
    requested: Requested, qemu: str, xen: Path, context: BuildContext, *, device: Path = DEVICE
) -> AccelChoice:
    """Choose the accelerator; `xen` is the hypervisor that KVM has to start.

    The proof is made once per machine, kernel, CPU, QEMU and Xen, and cached.
    Raises InputError when KVM was asked for and can't be had.
    """
    if requested == "tcg":
        return AccelChoice("tcg", "as asked")
    trouble = _device_trouble(device) or _proof(qemu, xen, context)
    if trouble is None:
        return _KVM_WORKS
    if requested == "kvm":
        raise InputError(f"KVM can't be used here: {trouble}", hint="--accel tcg runs anywhere")
    return AccelChoice("tcg", f"KVM: {trouble}")


def remembered(qemu: str, xen: Path, cache: Cache, *, device: Path = DEVICE) -> AccelChoice | None:
    """What "auto" means here, if that is known without starting anything; else None."""
    trouble = _device_trouble(device)
    if trouble is None:
        entry = cache.find("accel", _inputs(qemu, xen))
        if entry is None:
            return None
        trouble = json.loads((entry / "answer.json").read_text())["trouble"]
    return AccelChoice("tcg", f"KVM: {trouble}") if trouble else _KVM_WORKS


def _device_trouble(device: Path) -> str | None:
    if not device.exists():
        return f"no {device}"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} does not open: {error.strerror}"
    return None


def _proof(qemu: str, xen: Path, context: BuildContext) -> str | None:
    inputs = _inputs(qemu, xen)

    def build(directory: Path) -> None:
        with context.progress.stage("trying KVM with Xen"):
            trouble = probe(qemu, xen)
        (directory / "answer.json").write_text(json.dumps({"trouble": trouble}))

    entry = context.entry("accel", inputs, build)
    answer = json.loads((entry / "answer.json").read_text())["trouble"]
    return None if answer is None else str(answer)


def _inputs(qemu: str, xen: Path) -> dict[str, JSON]:
    path = shutil.which(qemu)
    if path is None:
        raise InputError(f"{qemu} is not installed", hint=installs(qemu))
    binary = Path(path).resolve()
    stat = xen.stat()
    return {
        "machine": _machine_id(),
        "kernel": platform.release(),
        "cpu": host_cpu(),
        "qemu": str(binary),
        "version": qemu_version(path),
        "mtime": binary.stat().st_mtime_ns,
        "xen": [stat.st_size, stat.st_mtime_ns],
    }


def _machine_id() -> str:
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            return path.read_text().strip()
        except OSError:
            continue
    return platform.node()


def probe(qemu: str, xen: Path, accel: Accel = "kvm", root: Path | None = None) -> str | None:
    """Start Xen alone under `accel`; what went wrong, or None when its banner came."""
    spec = MachineSpec(xen=xen, qemu=qemu, accel=accel, memory_mib=512)
    try:
        with RunDir.create(root) as rundir, Machine.start(spec, rundir) as machine:
            machine.xen.expect(r"Xen version \d", BANNER_TIMEOUT, "Xen's banner")
    except RigError as error:
        return f"opens, but Xen does not start under it ({_cause(error)})"
    return None


def _cause(error: RigError) -> str:
    """QEMU's most telling line, without its prefix."""
    for sign in (r"internal error", r"\berror: ", "Could not access KVM", "KVM"):
        for line in error.lines:
            if re.search(sign, line):
                return _BEFORE.sub("", line).strip()
    return error.message.split("; last lines")[0]
