"""Time-stamped log files that cannot fill the disk.

A log keeps its beginning and its end: when it has grown to its limit it becomes
`<name>.log.1` and a new one is begun; later on the new one is begun again and again, each
time with a line that says how much was cut.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

HALF_LIMIT = 8 * 2**20
"""Bytes in each of the two files of a log."""


class CappedLog:
    """A text log of at most 2 × `half_limit` bytes; written from one thread, line by line.

    A full disk does not end a run because of its logs: `broken` is called once, and no more
    is written.
    """

    def __init__(
        self,
        path: Path,
        half_limit: int = HALF_LIMIT,
        broken: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self.path = path
        self._half = half_limit
        self._broken = broken
        self._size = 0
        self._lines = 0
        self._cut_lines = 0
        self._cut_bytes = 0
        self._file = path.open("wb", buffering=0)

    def write(self, line: str) -> None:
        """Add one line (without its end)."""
        if self._file.closed:
            return
        data = line.encode("utf-8", "replace") + b"\n"
        try:
            if self._size + len(data) > self._half:
                self._turn()
            self._file.write(data)
        except OSError as error:
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._broken(error)
            return
        self._size += len(data)
        self._lines += 1

    def _turn(self) -> None:
        first = self.path.with_name(self.path.name + ".1")
        if not first.exists():
            self._file.close()
            self.path.rename(first)
            self._file = self.path.open("wb", buffering=0)
            note = f"(goes on from {first.name})\n"
        else:
            self._cut_lines += self._lines
            self._cut_bytes += self._size
            self._file.seek(0)
            self._file.truncate()
            note = (
                f"(cut here: {self._cut_lines} lines, {self._cut_bytes / 2**20:.1f} MiB,"
                f" after the end of {first.name})\n"
            )
        self._file.write(note.encode())
        self._size = self._lines = 0

    def close(self) -> None:
        self._file.close()
