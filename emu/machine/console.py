"""A console of Xen or of a guest: logged, watched, and driven with pexpect.

Bytes come in through `feed` in the reactor's thread, from a socket to QEMU or from a
domU's console behind the command channel. They never wait for a reader: unread text beyond
one MiB is dropped, oldest first, and the logs are bounded as well.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pexpect

from emu.deadline import Deadline
from emu.errors import GuestError
from emu.machine.consolelog import CappedLog
from emu.machine.expecting import Expecter, Pattern
from emu.machine.terminal import Cleaner
from emu.machine.verdict import LINUX, scan
from emu.machine.watch import Finding, Watch
from emu.reactor import reactor

UNREAD_LIMIT = 2**20
"""Characters kept for a reader, and for pexpect's `before`."""
HISTORY_LINES = 2000
LINE_LIMIT = 4096
"""Characters after which a line without an end is cut into two."""
_SETTLED_TAIL = 1.0
"""Seconds after which an unfinished line is scanned as if it were whole."""


class Console:
    """One console; `name` is what logs and errors call it.

    `write` sends bytes to the guest and must not block for long. `speakers` names who prints to
    it, by kind (verdict.XEN, verdict.LINUX); the default is a Linux of its name.
    """

    def __init__(
        self,
        name: str,
        watch: Watch,
        write: Callable[[bytes], None],
        *,
        speakers: Mapping[str, str] | None = None,
        log: CappedLog | None = None,
        merged: Callable[[float, str, str], None] | None = None,
    ) -> None:
        self.name = name
        self.watch = watch
        self.dropped = 0
        """Characters that were dropped unread."""
        self._write = write
        self._speakers = speakers or {LINUX: name}
        self._log = log
        self._merged = merged
        self._cleaner = Cleaner()
        self._lock = threading.Lock()
        self._unread: deque[str] = deque()
        self._unread_size = 0
        self._history: deque[tuple[int, str]] = deque(maxlen=HISTORY_LINES)
        self._number = 0
        self._tail = ""
        self._tail_began = 0.0
        self._tail_reported = False
        self._tail_timer = False
        self._last_byte = time.monotonic()
        self._taps: list[Callable[[bytes], None]] = []
        self._awaiting: Deadline | None = None
        self._expecter = Expecter(self, lambda: UNREAD_LIMIT)
        self.closed = False
        watch.add(self)

    # Input.

    def feed(self, data: bytes) -> None:
        """Bytes from the guest, from any thread; returns at once."""
        if reactor().here():
            self._feed(data)
        else:
            reactor().soon(lambda: self._feed(data))

    def close(self) -> None:
        """The guest's end was closed: the unfinished line is logged, readers get EOF."""
        if reactor().here():
            self._close()
        else:
            reactor().call(self._close)

    def _feed(self, data: bytes, final: bool = False) -> None:
        if self.closed:
            return
        self._last_byte = time.monotonic()
        for tap in tuple(self._taps):
            tap(data)
        text = self._cleaner.feed(data, final)
        with self._lock:
            self._keep_unread(text)
        self._take_lines(text)
        self.watch.notify()

    def _close(self) -> None:
        if self.closed:
            return
        self._feed(b"", final=True)
        self._finish_line()
        self.closed = True
        if self._log:
            self._log.close()
        self.watch.notify()

    def _keep_unread(self, text: str) -> None:
        if text:
            self._unread.append(text)
            self._unread_size += len(text)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while self._unread_size > UNREAD_LIMIT:
            oldest = self._unread.popleft()
            size = min(len(oldest), self._unread_size - UNREAD_LIMIT)
            if size < len(oldest):
                self._unread.appendleft(oldest[size:])
            self._unread_size -= size
            self.dropped += size

    def _take_lines(self, text: str) -> None:
        *whole, rest = text.split("\n")
        for part in whole:
            self._add_to_tail(part)
            self._finish_line(even_empty=True)
        self._add_to_tail(rest)
        if self._tail and not self._tail_timer:
            self._tail_timer = True
            reactor().loop.call_later(_SETTLED_TAIL, self._look_at_tail)

    def _add_to_tail(self, text: str) -> None:
        if not self._tail:
            self._tail_began = self.watch.now()
        self._tail += text
        while len(self._tail) > LINE_LIMIT:
            more = self._tail[LINE_LIMIT:]
            self._tail = self._tail[:LINE_LIMIT]
            self._finish_line()
            self._tail, self._tail_began = more, self.watch.now()

    def _finish_line(self, even_empty: bool = False) -> None:
        line, self._tail = self._tail, ""
        reported, self._tail_reported = self._tail_reported, False
        if not line and not even_empty:
            return
        with self._lock:
            self._number += 1
            self._history.append((self._number, line))
        stamp = self._tail_began
        if self._log:
            self._log.write(f"[{stamp:9.3f}] {line}")
        if self._merged:
            self._merged(stamp, self.name, line)
        if not reported:
            self._scan(line, self._number)

    def _look_at_tail(self) -> None:
        self._tail_timer = False
        if not self._tail or self._tail_reported or self.closed:
            return
        left = _SETTLED_TAIL - self.idle()
        if left > 0:
            self._tail_timer = True
            reactor().loop.call_later(left + 0.01, self._look_at_tail)
        else:
            self._tail_reported = self._scan(self._tail, self._number + 1)

    def _scan(self, line: str, number: int) -> bool:
        match = scan(line, self._speakers)
        if match:
            guest = self._speakers[match.kind]
            self.watch.report(Finding(match.name, guest, self.name, line, self._tail_began, number))
        return match is not None

    # History.

    def idle(self) -> float:
        """Seconds since the last byte came."""
        return time.monotonic() - self._last_byte

    def last_lines(self, count: int) -> list[str]:
        """The last lines, the unfinished one included."""
        with self._lock:
            lines = [line for _, line in self._history]
        lines += [self._tail] if self._tail else []
        return [line for line in lines if line.strip()][-count:]

    def around(self, number: int, before: int, after: int) -> list[str]:
        """The lines around line `number` that are still in the history."""
        with self._lock:
            known = list(self._history)
        if self._tail:
            known.append((self._number + 1, self._tail))
        return [line for n, line in known if number - before <= n <= number + after]

    def tap(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Have `listener` called with every raw chunk, in the reactor; returns how to stop."""
        reactor().call(lambda: self._taps.append(listener))
        return lambda: reactor().call(lambda: self._taps.remove(listener))

    # pexpect.

    def send(self, text: str | bytes, char_delay: float = 0.0) -> None:
        """Type `text`; with `char_delay`, that many seconds between characters."""
        data = text.encode() if isinstance(text, str) else text
        if char_delay <= 0:
            self._write(data)
            return
        for at in range(len(data)):
            self._write(data[at : at + 1])
            time.sleep(char_delay)

    def sendline(self, text: str = "", char_delay: float = 0.0) -> None:
        """Type `text` and Enter."""
        self.send(text + "\r", char_delay)

    def expect(
        self, patterns: Pattern | Sequence[Pattern], timeout: float, what: str | None = None
    ) -> int:
        """Wait until one of the patterns comes; its index. Lines end in "\\n" here.

        `timeout` in seconds before scaling; `what` is awaited, for errors. Raises
        GuestTrouble, WaitTimeout, GuestError when the console ended, RigError when QEMU did.
        `pexpect.TIMEOUT` and `pexpect.EOF` among the patterns are returned, not raised.
        """
        return self._expect(patterns, timeout, what)

    def expect_exact(
        self, strings: str | Sequence[str], timeout: float, what: str | None = None
    ) -> int:
        """`expect` for plain strings."""
        return self._expect(strings, timeout, what, exact=True)

    def _expect(
        self, patterns: object, timeout: float, what: str | None, exact: bool = False
    ) -> int:
        deadline = Deadline(what or _described(patterns), timeout)
        self.watch.check(deadline)
        self._awaiting = deadline
        try:
            return self._expecter.expect(patterns, deadline.seconds, exact=exact)
        except pexpect.TIMEOUT:
            raise self.watch.timed_out(deadline, self.name) from None
        except pexpect.EOF:
            raise GuestError(
                f"{self.name}: the console was closed while waiting for {deadline}",
                lines=self.last_lines(15),
            ) from None

    @property
    def before(self) -> str:
        """What came before the last match."""
        return self._expecter.before

    @property
    def after(self) -> str:
        """The last match's text."""
        return self._expecter.after

    @property
    def match(self) -> Any:
        """The last match: a `re.Match`, or the string of `expect_exact`."""
        return self._expecter.match

    def forget(self) -> None:
        """Drop all that came so far and was not expected yet."""
        with self._lock:
            self._unread.clear()
            self._unread_size = 0

    def take(self, size: int) -> str:
        """Up to `size` characters that came and were not read yet ("" when there are none)."""
        with self._lock:
            if not self._unread:
                return ""
            text = self._unread.popleft()
            if len(text) > size:
                self._unread.appendleft(text[size:])
                text = text[:size]
            self._unread_size -= len(text)
            return text

    def put_back(self, text: str) -> None:
        """Let `text` be taken again, before what came since."""
        with self._lock:
            if text:
                self._unread.appendleft(text)
                self._unread_size += len(text)
            self._drop_oldest()

    def await_text(self, seconds: float) -> bool:
        """Wait `seconds` at most until there is text to take; False when the console was closed.

        Raises what is wrong with the machine.
        """
        self.watch.check(self._awaiting)
        if self.closed and not self._unread:
            return False
        self.watch.sleep_until_change(lambda: bool(self._unread) or self.closed, seconds)
        return True


def _described(patterns: object) -> str:
    if not isinstance(patterns, (list, tuple)):
        patterns = [patterns]
    return " or ".join(repr(p.pattern if isinstance(p, re.Pattern) else p) for p in patterns)
