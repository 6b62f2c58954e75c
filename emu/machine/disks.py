"""Disk layers: the images a machine starts from, and the overlays it writes to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emu.errors import InputError, RigError
from emu.hosttools import installs
from emu.machine.rundir import disk_errors, disk_full
from emu.machine.spec import Disk


def open_layers(disk: Disk, frozen: Sequence[Path], scratch: Path) -> list[int]:
    """Open a disk's files, base first: the image, `frozen` overlays, a throwaway overlay.

    The throwaway overlay is made in directory `scratch` and unlinked: it ends with its last
    descriptor, even if processes are killed. The caller closes the descriptors.
    """
    paths = [disk.path, *frozen]
    fds: list[int] = []
    try:
        for layer, path in enumerate(paths):
            writable = not disk.readonly and not disk.throwaway and layer == len(paths) - 1
            fds.append(_open(path, os.O_RDWR if writable else os.O_RDONLY))
        if disk.overlaid:
            fds.append(new_overlay(virtual_size(disk), scratch))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"can't open {path}: {error.strerror}") from error


def virtual_size(disk: Disk) -> int:
    """The size the guest sees, in bytes; raw images are rounded up to a sector (512)."""
    if disk.format == "raw":
        return (disk.path.stat().st_size + 511) // 512 * 512
    with disk.path.open("rb") as file:
        header = file.read(32)
    if header[:4] != b"QFI\xfb":
        raise InputError(f"{disk.path} is not a qcow2 image")
    # The qcow2 header: u64 at byte 24 is the virtual size (docs/interop/qcow2.txt in QEMU).
    return int.from_bytes(header[24:32], "big")


def new_overlay(size: int, scratch: Path) -> int:
    """A descriptor of an empty, nameless qcow2 image of `size` bytes in `scratch`."""
    with disk_errors(scratch, "a disk's overlay"):
        fd, name = tempfile.mkstemp(prefix="overlay-", dir=scratch)
        try:
            made = subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", name, str(size)],
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            os.close(fd)
            raise InputError("qemu-img is not installed", hint=installs("qemu-img")) from None
        finally:
            Path(name).unlink(missing_ok=True)
    if made.returncode:
        os.close(fd)
        if "No space left" in made.stderr:
            raise disk_full(scratch, "a disk's overlay")
        raise RigError("qemu-img could not make an overlay", lines=made.stderr.splitlines())
    return fd
