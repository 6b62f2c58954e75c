"""kcore.c, with which emu-grants and emu-memory read kernel memory, on files."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sanitized

from emu import paths

ADDRESS = 0xFFFFFFFF81000000
VALUE = 20150512
_HEAD = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DATA = _HEAD.size + _SEGMENT.size


def kcore() -> bytes:
    """An ELF file with one segment of 4 bytes, as /proc/kcore has one for each piece of memory."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = _HEAD.pack(ident, 4, 62, 1, 0, _HEAD.size, 0, 0, 64, _SEGMENT.size, 1, 0, 0, 0)
    segment = _SEGMENT.pack(1, 4, _DATA, ADDRESS, 0, 4, 4, 4096)
    return head + segment + struct.pack("<I", VALUE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kcore"


@pytest.fixture
def player(file: Path) -> Iterator[subprocess.Popen[str]]:
    folder = paths.guest_images() / "agent"
    program = sanitized.build(
        "kcore-player",
        folder,
        [Path(__file__).parents[1] / "support" / "kcore_player.c", folder / "kcore.c"],
        flags=["-Wl,--wrap=open"],
    )
    command = [str(program), str(file), hex(ADDRESS)]
    with subprocess.Popen(
        command, stdin=-1, stdout=-1, text=True, env=sanitized.environment()
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0


def peek(player: subprocess.Popen[str]) -> str:
    assert player.stdin
    assert player.stdout
    player.stdin.write("\n")
    player.stdin.flush()
    return player.stdout.readline().rstrip()


@pytest.mark.parametrize("length", [0, _HEAD.size - 1, _HEAD.size, _DATA - 1, _DATA, _DATA + 3])
def test_failed_read_is_not_kept(player: subprocess.Popen[str], file: Path, length: int) -> None:
    file.write_bytes(kcore()[:length])
    assert peek(player) == "/proc/kcore: Input/output error"
    file.write_bytes(kcore())
    assert peek(player) == str(VALUE)
    assert peek(player) == str(VALUE)


def test_missing_file_is_reported(player: subprocess.Popen[str], file: Path) -> None:
    assert peek(player) == "/proc/kcore: No such file or directory"
    file.write_bytes(kcore())
    assert peek(player) == str(VALUE)
