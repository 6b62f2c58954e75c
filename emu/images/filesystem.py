"""ext4 as this machine's e2fsprogs make and check it.

A guest needs no mke2fs: of a new file system hardly a hundred KiB are written, and those are sent.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError, NotHeld
from emu.runprogram import run

BLOCK = 4096
"""Bytes of a block of the file systems made here."""
LEAST = 8 << 20
"""Bytes: on less mke2fs makes no journal."""
_EXTENDED = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"


@dataclass(frozen=True)
class Extent:
    """What mke2fs has written from block `first` on: whole blocks."""

    first: int
    data: bytes

    @property
    def blocks(self) -> int:
        """How many blocks that is."""
        return len(self.data) // BLOCK


def make_ext4(size: int) -> tuple[Extent, ...]:
    """An empty ext4 file system with a journal on a disk of `size` bytes: what is to be written.

    What the disk had elsewhere stays: inode tables and the journal count as not initialized
    (mke2fs(8): lazy_itable_init, lazy_journal_init). Raises InputError for less than 8 MiB.
    """
    if size < LEAST:
        raise InputError(f"a disk of {size} bytes has no room for ext4 and a journal: 8 MiB has")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "ext4"
        with image.open("wb") as file:
            file.truncate(size // BLOCK * BLOCK)
        make = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-U", str(uuid.uuid4())]
        run([*make, "-E", _EXTENDED, str(image)], "mke2fs failed")
        return tuple(_written(image))


def check_ext4(image: Path, what: str) -> None:
    """Check a file that holds an ext4 file system that was unmounted (e2fsck -fn).

    Raises NotHeld, which calls it `what`, with e2fsck's own words.
    """
    done = run(["e2fsck", "-fn", str(image)])
    if done.status:
        lines = (done.text + done.errors).replace(str(image), what).splitlines()
        raise NotHeld(
            f"the file system on {what} is damaged: e2fsck ended with status {done.status}",
            lines=lines[-12:],
        )


def _written(image: Path) -> Iterator[Extent]:
    with image.open("rb") as file:
        fd, at = file.fileno(), 0
        while True:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here on
                return
            at = os.lseek(fd, start, os.SEEK_HOLE)
            yield Extent(start // BLOCK, os.pread(fd, at - start, start))
