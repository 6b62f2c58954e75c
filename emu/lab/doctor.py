"""`emu doctor`: what this machine has, what is missing, and how to fix it.

It builds nothing that a run needs. QEMU's faults are tried with guests of one page each.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emu import paths
from emu.emulator import accel, faults
from emu.emulator import build as qemubuild
from emu.emulator import choice as emulator
from emu.errors import EmuError, InputError
from emu.hosttools import (
    HOST_PACKAGES,
    HostPackage,
    builds_qemu,
    install_command,
    load_packages,
)
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.mirrors import find_mirrors
from emu.images.packages import Lock, digest_of_wanted, load_wanted
from emu.images.replaced import described, lock_in_use
from emu.lab import hostkernel, store
from emu.machine.hostmemory import host_memory
from emu.machine.identity import host_cpu, qemu_version

State = Literal["ok", "note", "missing"]
"""missing: `emu run` can't work; note: it can, but there is something to know."""

MEMORY_NEED = 2 << 30
"""Bytes for one emulated PC, whose RAM is allocated as its guests touch it."""
DISK_NEED = 3 << 30
"""Bytes for a first run with the debian kernel: packages 0.4 GiB, images 0.3, a checkpoint 0.4,
the rest while they are built."""
_ON_REQUEST = {
    "qemu": ("to build a patched QEMU", "make qemu"),
    "lint": ("to check this project's own C", "make lint"),
}
"""Needs of host-packages.txt that `make setup` leaves out, what for, and the target for each."""
_DEBIAN_12 = "CONFIG_GCC_VERSION=120200"


@dataclass(frozen=True)
class Check:
    """One line of the report: `fix` is the command or the change that helps."""

    subject: str
    state: State
    text: str
    fix: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order they are read."""

    findings: tuple[Check, ...]

    @property
    def able(self) -> bool:
        """Whether `emu run` can work here."""
        return all(finding.state != "missing" for finding in self.findings)


def examine(qemu: str, packages: Path = HOST_PACKAGES) -> Diagnosis:
    """Check everything, without the network; takes seconds with a new `qemu`.

    `qemu` is a name or a path, as `emulator` takes them.
    """
    root = paths.cache_root()
    cache = Cache(root) if root.is_dir() and os.access(root, os.W_OK) else None
    program, there = _qemu(qemu, cache)
    findings = [_system(), there, *_faults(program, cache)]
    findings += [_accelerator(program, cache), _processor(), _memory()]
    findings += [_disk(root), *_contents(cache), _python(), _compiler()]
    findings += [*_locked(cache), *_host_packages(load_packages(packages)), *_kernel_services()]
    return Diagnosis(tuple(findings))


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """As JSON."""
    return {
        "able": diagnosis.able,
        "findings": [vars(finding) for finding in diagnosis.findings],
    }


# -- below: one check each


def _system() -> Check:
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    text = f"{release.get('PRETTY_NAME', platform.system())}, Linux {platform.release()}"
    if platform.machine() != "x86_64":
        return Check(
            "system", "missing", f"{text} on {platform.machine()}", "only x86_64 is supported"
        )
    return Check("system", "ok", text)


def _qemu(qemu: str, cache: Cache | None) -> tuple[str | None, Check]:
    """The program that `qemu` names, if it runs."""
    try:
        path = emulator.found(qemu, cache)
    except InputError as error:
        installs = install_command(["qemu-system-x86"])
        fix = error.hint if qemu in qemubuild.PATCHED else installs
        return None, Check("QEMU", "missing", error.message, fix)
    try:
        version = qemu_version(path)
    except (EmuError, OSError, subprocess.SubprocessError, IndexError) as error:
        return None, Check("QEMU", "missing", f"{path} does not run: {error}", "--qemu PATH")
    return path, Check("QEMU", "ok", f"{path}, {version.removeprefix('QEMU emulator ')}")


def _faults(qemu: str | None, cache: Cache | None) -> Iterator[Check]:
    """Its faults, tried now if they were not before. The cache keeps the result."""
    if qemu is None:
        return
    try:
        with contextlib.ExitStack() as opened:
            if cache is None:
                cache = Cache(Path(opened.enter_context(tempfile.TemporaryDirectory())))
            found = faults.find(qemu, BuildContext(cache))
    except EmuError as error:
        yield Check("TCG", "note", f"can't be tried: {error.message}", error.hint)
        return
    if not found:
        yield Check("TCG", "ok", f"has no fault that Xen meets; guests get -cpu {faults.CPU}")
        return
    for fault in found:
        yield Check("TCG", "note", fault.what)
    fix = f"{builds_qemu()}; --qemu patched"
    yield Check("TCG", "note", f"so guests get -cpu {faults.cpu_model(found)}", fix)


def _accelerator(qemu: str | None, cache: Cache | None) -> Check:
    if not accel.DEVICE.exists():
        return Check("accelerator", "ok", f"TCG (no {accel.DEVICE})")
    entries = [] if cache is None else cache.entries()
    if cache is not None and qemu is not None:
        for entry in entries:
            if entry.kind != "guests" or not (entry.path / "xen").exists():
                continue
            known = accel.remembered(qemu, entry.path / "xen", cache)
            if known is not None:
                return Check("accelerator", "ok", str(known))
    return Check("accelerator", "ok", "not known yet: the first run tries to start Xen under KVM")


def _processor() -> Check:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    text = f"{cores} cores, {host_cpu()}, load {load:.1f}"
    if cores < 2:
        return Check("cores", "note", text, "runs are slow with one core")
    if load > 2 * cores:
        return Check("cores", "note", text, "EMU_TIMEOUT_SCALE=2 doubles all time-outs")
    return Check("cores", "ok", text)


def _memory() -> Check:
    memory = host_memory()
    text = f"{_gib(memory.available)} of {_gib(memory.total)} available"
    if memory.total < MEMORY_NEED:
        return Check("memory", "missing", text, f"one emulated host needs {_gib(MEMORY_NEED)}")
    if memory.available < MEMORY_NEED:
        return Check(
            "memory",
            "note",
            text,
            f"one emulated host may use {_gib(MEMORY_NEED)}: end other programs",
        )
    return Check("memory", "ok", text)


def _disk(root: Path) -> Check:
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return Check("disk", "missing", f"{there} can't be written", "XDG_CACHE_HOME=… elsewhere")
    free = shutil.disk_usage(there).free
    text = f"{_gib(free)} free at {root}"
    if free < DISK_NEED:
        empty = not (root / "checkpoint").exists()
        state: State = "missing" if empty else "note"
        hint = "emu cache prune, or XDG_CACHE_HOME=… on a larger disk"
        return Check("disk", state, f"{text}, a first run takes {_gib(DISK_NEED)}", hint)
    return Check("disk", "ok", text)


def _contents(cache: Cache | None) -> Iterator[Check]:
    if cache is None:
        yield Check("cache", "ok", "empty: the first run fetches and builds (minutes)")
        return
    entries, runs = cache.entries(), store.runs(cache)
    size = sum(entry.size for entry in [*entries, *runs])
    counts = {
        what: sum(entry.kind.startswith(kind) for entry in entries)
        for kind, what in (
            ("kernel-", "kernels"),
            ("guests", "guest images"),
            ("checkpoint", "checkpoints"),
        )
    }
    held = ", ".join(f"{count} {what}" for what, count in counts.items())
    yield Check("cache", "ok", f"{_gib(size)}: {held}, {len(runs)} runs")


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()}, {sys.executable}")


def _compiler() -> Check:
    try:
        chain = kbuild.find_toolchain(_DEBIAN_12)
    except EmuError as error:
        return Check("compiler", "missing", error.message, error.hint)
    text = f"{shutil.which(chain.cc)}, {chain.version}"
    if other := kbuild.other_compiler(chain, _DEBIAN_12):
        text = f"{text}; for drivers of Debian 12's kernel {other}"
    return Check("compiler", "ok", text)


def _locked(cache: Cache | None) -> Iterator[Check]:
    try:
        locked, wanted = Lock.load(), load_wanted()
        lock = lock_in_use(cache, locked) if cache else locked
    except EmuError as error:
        yield Check("packages", "missing", error.message, error.hint)
        return
    if lock.wants != digest_of_wanted(wanted):
        text = "packages.lock was made from another packages.toml"
        yield Check("lock", "note", text, "emu images lock")
    if others := described(lock.entries):
        text = f"in place of locked ones, which the archive has replaced: {'; '.join(others)}"
        yield Check("lock", "note", text, "emu images lock")
    debs = cache.root / "store/debs" if cache else None
    there = [
        package
        for package in lock.entries
        if debs is not None and _size(debs / package.file_name) == package.size
    ]
    text = f"{len(there)} of {len(lock.entries)} locked packages are in the cache"
    if len(there) == len(lock.entries):
        yield Check("packages", "ok", text)
        return
    try:
        find_mirrors()
    except EmuError as error:
        yield Check("packages", "note", f"{text}; {error.message}", error.hint)
        return
    yield Check("packages", "ok", f"{text}; what a run needs is fetched")


def _host_packages(packages: Iterable[HostPackage]) -> Iterator[Check]:
    packages = tuple(packages)
    every = [package for package in packages if package.lacks]
    lacking = [package for package in every if package.needed_for not in _ON_REQUEST]
    for package in lacking:
        what = f"{', '.join(package.lacks)} ({package.purpose})"
        need = package.needed_for
        state: State = "missing" if need == "run" else "note"
        where = "" if need == "run" else f", for {'the lab kernel' if need == 'lab' else 'tests'}"
        yield Check("host tools", state, f"no {what}{where}", install_command([package.name]))
    if lacking:
        all_of_them = install_command(package.name for package in lacking)
        state = "missing" if any(package.needed_for == "run" for package in lacking) else "note"
        fix = all_of_them if paths.installed() else f"{all_of_them} (or: make setup)"
        yield Check("host tools", state, "all of these at once", fix)
    else:
        yield Check("host tools", "ok", f"all installed, of {len(packages) - len(every)} packages")
    for need, (what_for, target) in _ON_REQUEST.items():
        if names := [package.name for package in every if package.needed_for == need]:
            fix = install_command(names) if paths.installed() else f"`{target}` installs it"
            yield Check("host tools", "ok", f"no {', '.join(names)}: only {what_for}; {fix}")


def _kernel_services() -> Iterator[Check]:
    troubles = hostkernel.troubles()
    for name, trouble in troubles.items():
        yield Check(name, "missing", trouble)
    if not troubles:
        yield Check("kernel", "ok", f"{', '.join(hostkernel.CHECKS)} are fine")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
