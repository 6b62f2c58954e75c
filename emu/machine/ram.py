"""A guest's RAM as a sparse file."""

from __future__ import annotations

import os
from pathlib import Path

from emu.machine.rundir import disk_errors

PAGE = 4096
_CHUNK = 2**21
_ZERO_CHUNK = bytes(_CHUNK)
_ZERO_PAGE = bytes(PAGE)


def write_sparse(source: int, target: Path) -> int:
    """Copy the file behind descriptor `source` to a new file, leaving pages of zeros out.

    Returns the bytes that were written. Raises RigError when the disk is full.
    """
    size = os.fstat(source).st_size
    written = 0
    with disk_errors(target, "a guest's RAM"), target.open("xb", buffering=0) as out:
        os.truncate(out.fileno(), size)
        for start, end in _data_ranges(source, size):
            for at in range(start, end, _CHUNK):
                chunk = os.pread(source, min(_CHUNK, end - at), at)
                for offset, run in _runs(chunk):
                    written += _pwrite(out.fileno(), run, at + offset)
    return written


def copy_file(source: int, target: Path) -> None:
    """Copy the file behind a descriptor, holes and all."""
    write_sparse(source, target)


def _data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    ranges = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, at))
    return ranges


def _runs(chunk: bytes) -> list[tuple[int, memoryview]]:
    """The runs of pages that aren't all zero: (offset in the chunk, bytes)."""
    if chunk == _ZERO_CHUNK[: len(chunk)]:
        return []
    view = memoryview(chunk)
    runs = []
    begin = None
    for at in range(0, len(chunk), PAGE):
        # A page whose ends are not zero needs no full look.
        if chunk[at] or chunk[at : at + PAGE] != _ZERO_PAGE[: len(chunk) - at]:
            begin = at if begin is None else begin
        elif begin is not None:
            runs.append((begin, view[begin:at]))
            begin = None
    if begin is not None:
        runs.append((begin, view[begin:]))
    return runs


def _pwrite(fd: int, data: memoryview, at: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], at + done)
    return done
