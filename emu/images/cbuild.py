"""What is common to the C programs and the library of our own that go into the guests.

They are compiled inside their folder of guest-images/: a relative path in a program is the
same on every machine.
"""

from __future__ import annotations

from pathlib import Path

from emu import paths
from emu.images import kbuild
from emu.images.manifest import JSON

LANGUAGE = ("-std=gnu11", "-D_GNU_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
"""Without those about signs: off_t and ssize_t are signed, sizes and blocks are not, and each
call of pread() or loop around write() would need a cast that says nothing. What loses bits needs
one. The module of tests/support/trouble is built as Linux builds its own."""
FLAGS = (
    *LANGUAGE,
    *WARNINGS,
    "-O2",
    "-ffile-prefix-map=.=",
    "-s",
    "-Wl,--build-id=none",
)
CRC32 = "../common/crc32.c"
"""A source that both have, as it is called from their folders."""


def sources(folder: Path) -> dict[str, JSON]:
    """The C files and headers of a folder and those common to all, by name, with their SHA-256."""
    common = paths.guest_images() / "common"
    files = sorted([*folder.glob("*.[ch]"), *common.glob("*.[ch]")])
    names = [path.name for path in files]
    return dict(zip(names, kbuild.digest(files), strict=True))
