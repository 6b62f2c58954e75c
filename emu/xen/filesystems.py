"""File systems in a guest: written to a disk, mounted, trimmed, frozen, unmounted."""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from emu.channel.channel import Channel, CommandFailed, CommandTimeout
from emu.deadline import scale
from emu.errors import EmuError, NotHeld, RigError
from emu.images.depends import plain
from emu.images.filesystem import BLOCK, Extent
from emu.xen import drivers
from emu.xen.dmesg import log_tail
from emu.xen.lun import SECTOR

_WITHIN = 30.0
"""Seconds for what writes to a disk that works."""
_OPTIONS = {"ext4": "noinit_itable"}
"""By default ext4 fills inode tables in the background: writes that no test asked for."""
_WRITE = """
set -e
device=$1; shift
gunzip -c /tmp/filesystem.gz > /tmp/filesystem
rm /tmp/filesystem.gz
while [ $# -gt 0 ]; do
    dd if=/tmp/filesystem of=$device bs=$1 skip=$2 seek=$3 count=$4 conv=notrunc 2> /tmp/dd || {
        cat /tmp/dd >&2; exit 1; }
    shift 4
done
sync $device
rm /tmp/filesystem /tmp/dd
"""
_MOUNT = "mkdir -p $3 && mount -t $1 -o $4 $2 $3"
_UNMOUNT = "umount $1 && rmdir $1"


def load_modules(channel: Channel, files: Sequence[Path]) -> None:
    """Load modules in this order, but for those that are loaded. Raises NotHeld with the guest's
    words."""
    script = "for name; do [ -d /sys/module/$name ] || echo $name; done"
    names = {plain(file.name): file for file in files}
    missing = channel.run(["sh", "-c", script, "sh", *names], timeout=20).text.split()
    for name in missing:
        drivers.load(channel, name, names[name])


def write(channel: Channel, disk: str, extents: Sequence[Extent]) -> None:
    """Write a new file system to `disk`. Raises NotHeld with the guest's words."""
    data = b"".join(extent.data for extent in extents)
    channel.put(gzip.compress(data, 6, mtime=0), "/tmp/filesystem.gz")
    words: list[str] = []
    at = 0
    for extent in extents:
        words += map(str, (BLOCK, at, extent.first, extent.blocks))
        at += extent.blocks
    _run(channel, f"making a file system on {disk}", _WRITE, f"/dev/{disk}", *words)


def size(channel: Channel, disk: str) -> int:
    """Bytes of a disk, as the guest has it."""
    text = channel.run(["cat", f"/sys/block/{disk}/size"], timeout=20).text
    return int(text) * SECTOR


def mount(channel: Channel, disk: str, path: str, fs: str) -> None:
    """Mount `disk` on `path`, which is made. Raises NotHeld with the kernel's words."""
    _run(channel, f"mounting {disk} as {fs}", _MOUNT, fs, f"/dev/{disk}", path, _OPTIONS[fs])


def unmount(channel: Channel, path: str) -> None:
    """Unmount `path` and remove it. Raises NotHeld with the kernel's words."""
    _run(channel, f"unmounting {path}", _UNMOUNT, path)


def trim(channel: Channel, path: str) -> int:
    """Discard what the file system on `path` does not use; how many bytes (fstrim(8)).

    Raises NotHeld with the kernel's words.
    """
    text = _run(channel, f"trimming {path}", "fstrim -v $1", path)
    trimmed = re.search(r"(\d+) bytes", text)
    if trimmed is None:
        raise RigError(f"fstrim does not say how much it trimmed: {text!r}")
    return int(trimmed[1])


@contextlib.contextmanager
def frozen(channel: Channel, path: str) -> Iterator[None]:
    """The file system on `path` is frozen while the body runs (fsfreeze(8)).

    All it has in memory is on the disk then; who writes waits. Raises NotHeld.
    """
    _run(channel, f"freezing {path}", "fsfreeze --freeze $1", path)
    try:
        yield
    except BaseException:
        with contextlib.suppress(EmuError):
            thaw(channel, path)
        raise
    thaw(channel, path)


def thaw(channel: Channel, path: str) -> None:
    """End `frozen`. Raises NotHeld with the kernel's words."""
    _run(channel, f"thawing {path}", "fsfreeze --unfreeze $1", path)


def _run(channel: Channel, doing: str, script: str, *words: str) -> str:
    try:
        return channel.run(["sh", "-c", script, "sh", *words], timeout=_WITHIN).text
    except CommandFailed as failed:
        raise NotHeld(
            f"{channel.name}: {doing} failed", lines=[*failed.lines, *log_tail(channel)]
        ) from None
    except CommandTimeout:
        raise NotHeld(
            f"{channel.name}: {doing} did not end within {_WITHIN * scale():.0f} s",
            lines=log_tail(channel),
        ) from None
