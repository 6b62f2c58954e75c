"""Flags and sources common to our C programs and library in the guests.

They are compiled inside their folder of guest-images/: the relative paths in a binary are the
same on every machine.
"""

from __future__ import annotations

from pathlib import Path

from emu import paths
from emu.images import kbuild
from emu.images.manifest import JSON

LANGUAGE = ("-std=gnu11", "-D_GNU_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
"""Without sign conversions: off_t and ssize_t are signed, sizes and block numbers are not, and each
pread() and each loop around write() would need a cast. Conversions that lose bits need one. The
kernel module in tests/support/trouble is built with Linux' flags."""
FLAGS = (
    *LANGUAGE,
    *WARNINGS,
    "-O2",
    "-ffile-prefix-map=.=",
    "-s",
    "-Wl,--build-id=none",
)
CRC32 = "../common/crc32.c"
"""A source that both use, relative to their folders."""


def sources(folder: Path) -> dict[str, JSON]:
    """SHA-256 of the C files and headers of a folder and of common/, by name."""
    common = paths.guest_images() / "common"
    files = sorted([*folder.glob("*.[ch]"), *common.glob("*.[ch]")])
    names = [path.name for path in files]
    return dict(zip(names, kbuild.digest(files), strict=True))
