"""ext4 file systems, as they are made for guests and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.errors import InputError, NotHeld
from emu.images.filesystem import BLOCK, check_ext4, make_ext4


def test_what_is_sent_makes_a_file_system(tmp_path: Path) -> None:
    size = 64 << 20
    image = tmp_path / "image"
    extents = make_ext4(size)
    with image.open("wb") as file:
        file.truncate(size)
        for extent in extents:
            file.seek(extent.first * BLOCK)
            file.write(extent.data)
    check_ext4(image, "LUN lun0")
    assert sum(len(extent.data) for extent in extents) < 1 << 20

    with image.open("r+b") as file:
        file.seek(extents[-1].first * BLOCK)
        file.write(b"\xff" * BLOCK)
        file.seek(BLOCK)
        file.write(b"\xff" * BLOCK)
    with pytest.raises(NotHeld, match="the file system on LUN lun0 is damaged") as damaged:
        check_ext4(image, "LUN lun0")
    assert damaged.value.lines


def test_disk_without_room_for_a_journal_is_refused() -> None:
    with pytest.raises(InputError, match="8 MiB"):
        make_ext4((8 << 20) - 512)
    make_ext4(8 << 20)
