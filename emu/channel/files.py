"""Files through a channel: their bytes, then a trailer with number and CRC-32 of the bytes.

The guest's end is guest-images/agent/files.c.
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from emu.channel import frames
from emu.channel.process import Process
from emu.deadline import Deadline
from emu.errors import GuestError

_CHUNK = 1 << 18


def patience(source: Path | bytes) -> float:
    """The time-out of a file: a minute, and two seconds for each MiB.

    20 to 40 MiB go in a second. A test has 600 s: a file that hangs is reported before.
    Raises OSError when there is no file.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    return 60.0 + 2.0 * size / 2**20


def send(process: Process, source: Path | bytes, deadline: Deadline) -> None:
    """Send a file to a running `put`."""
    crc = length = 0
    with contextlib.suppress(BrokenPipeError):  # its exit status and stderr say why
        for chunk in _chunks(source):
            crc, length = zlib.crc32(chunk, crc), length + len(chunk)
            process.write(chunk, deadline)
        process.write(frames.trailer(length, crc), deadline)
    process.close_stdin()


def receive(
    process: Process, deadline: Deadline, expect_success: Callable[[], None]
) -> Iterator[bytes]:
    """The bytes that a `get` sends; `expect_success` is called at their end, and may raise.

    Raises GuestError when they came damaged.
    """
    held = b""
    crc = length = 0
    while data := process.read(_CHUNK, deadline):
        held += data
        ready, held = held[: -frames.TRAILER_SIZE], held[-frames.TRAILER_SIZE :]
        crc, length = zlib.crc32(ready, crc), length + len(ready)
        yield ready
    expect_success()
    if not frames.is_trailer(held, length, crc):
        raise GuestError(f"the {length} bytes that came are not those that were sent")


def save(chunks: Iterable[bytes], local: Path) -> bytes:
    """Write `chunks` beside `local`, then in its place; returns b\"\"."""
    with tempfile.NamedTemporaryFile(dir=local.parent, delete=False) as file:
        scratch = Path(file.name)
        try:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            scratch.replace(local)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    return b""


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for at in range(0, len(source), _CHUNK):
            yield source[at : at + _CHUNK]
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
