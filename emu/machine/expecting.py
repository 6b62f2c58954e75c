"""pexpect over text that comes through memory, by its public interface."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Protocol

import pexpect
from pexpect.spawnbase import SpawnBase

Pattern = str | re.Pattern[str] | type[pexpect.EOF] | type[pexpect.TIMEOUT]

_READ, _WINDOW = 4096, 16384
"""Characters of a read, and of what is searched after it: more than one read, or pexpect would
not search all of it."""


class Source(Protocol):
    """Where the text comes from."""

    def take(self, size: int) -> str:
        """Up to `size` characters that came and were not taken yet ("" when there are none)."""

    def put_back(self, text: str) -> None:
        """Let `text` be taken again, first."""

    def await_text(self, seconds: float) -> bool:
        """Wait until there is text; False when there never will be. What it raises ends it all."""


class _Full(Exception):
    """So much was read without a match that its beginning has to be dropped."""


class Expecter:
    """What pexpect's spawn is to a process, for a `Source`; keeps `limit` characters at most.

    `before`, `after` and `match` are of the last call, as pexpect has them.
    """

    def __init__(self, source: Source, limit: Callable[[], int]) -> None:
        self._source = source
        self._limit = limit
        self._spawn = _Spawn(source, limit())

    def expect(self, patterns: object, timeout: float, *, exact: bool = False) -> int:
        """`pexpect.spawn.expect` (or `expect_exact`), `timeout` in seconds.

        Raises pexpect.TIMEOUT, pexpect.EOF, or what the source raises.
        """
        end = time.monotonic() + timeout
        while True:
            # A new one each time: what pexpect keeps for `before` can't be bounded from outside.
            spawn = self._spawn = _Spawn(self._source, self._limit())
            look = spawn.expect_exact if exact else spawn.expect
            try:
                index: int = look(patterns, timeout=max(0.0, end - time.monotonic()))
            except _Full:
                self._source.put_back(spawn.before[-_WINDOW:])
                continue
            except BaseException:
                self._source.put_back(spawn.before or "")
                raise
            matched = isinstance(spawn.after, str)
            self._source.put_back(spawn.buffer if matched else spawn.before)
            return index

    @property
    def before(self) -> str:
        return self._spawn.before or ""

    @property
    def after(self) -> str:
        return self._spawn.after if isinstance(self._spawn.after, str) else ""

    @property
    def match(self) -> re.Match[str] | str | None:
        match: re.Match[str] | str | None = self._spawn.match
        return match


class _Spawn(SpawnBase):  # type: ignore[misc]
    """One expect."""

    def __init__(self, source: Source, limit: int) -> None:
        super().__init__(
            timeout=None,
            maxread=_READ,
            searchwindowsize=_WINDOW,
            encoding="utf-8",
            codec_errors="replace",
        )
        self.delayafterread = None
        self._source = source
        self._left = limit

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> str:
        if self._left <= 0:
            raise _Full
        end = time.monotonic() + (timeout or 0.0)
        while not (text := self._source.take(size)):
            left = max(0.0, end - time.monotonic())
            if not self._source.await_text(left):
                raise pexpect.EOF("no more text")
            if not left:
                raise pexpect.TIMEOUT("time is up")
        self._left -= len(text)
        return text
