"""Consoles: cleaned, logged, bounded, watched, expected."""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emu.errors import RigError
from emu.machine import console as console_module
from emu.machine.console import Console
from emu.machine.consolelog import CappedLog
from emu.machine.link import Link
from emu.machine.terminal import Cleaner
from emu.machine.watch import GuestTrouble, WaitTimeout, Watch
from emu.reactor import reactor

Make = Callable[..., Console]


@pytest.fixture
def typed() -> list[bytes]:
    return []


@pytest.fixture
def make(tmp_path: Path, typed: list[bytes]) -> Iterator[Make]:
    made: list[Console] = []

    def make_console(half_limit: int = 2**20) -> Console:
        log = CappedLog(tmp_path / "dom0.log", half_limit)
        made.append(Console("dom0", Watch(), typed.append, log=log))
        return made[-1]

    yield make_console
    for console in made:
        console.close()


def flush() -> None:
    """Wait until all that was fed so far has been handled."""
    reactor().call(lambda: None)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (b"plain\r\n", "plain\n"),
        (b"twice translated\r\r\n", "twice translated\n"),
        (b"10%\r20%\r\n", "10%\n20%\n"),
        (b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x1b(By\x1b]0;t\x1b\\z\n", "red xyz\n"),
        (b"caf\xc3\xa9 \xff\xfe\n", "café \ufffd\ufffd\n"),
        (b"bell\x07 nul\x00 tab\t del\x7f\n", "bell nul tab\t del\n"),
        (b"\x1b[" + b"1" * 400 + b"\n", "[" + "1" * 400 + "\n"),
    ],
)
def test_bytes_become_text(raw: bytes, clean: str) -> None:
    assert Cleaner().feed(raw, final=True) == clean


@example([b"\r", b"\x1b[1m", b"\n"])
@example([b"\r", b"\x1b", b"a", b"\n"])
@given(
    st.lists(
        st.sampled_from(
            [b"a", b"\r", b"\n", b"\x1b", b"[", b"1m", b"]0;", b"\x07", b"\xc3", b"\xa9"]
        )
    )
)
def test_chunks_may_be_cut_anywhere(parts: list[bytes]) -> None:
    cleaner = Cleaner()
    pieces = "".join(cleaner.feed(part) for part in parts) + cleaner.feed(b"", final=True)
    assert pieces == Cleaner().feed(b"".join(parts), final=True)


def test_lines_are_logged_with_a_time_stamp(make: Make, tmp_path: Path) -> None:
    console = make()
    console.feed(b"first\r\nsec")
    console.feed(b"ond\r\n\r\nno end")
    console.close()
    lines = (tmp_path / "dom0.log").read_text().splitlines()
    assert [re.sub(r"^\[ +\d+\.\d{3}\] ", "", line) for line in lines] == [
        *("first", "second", "", "no end")
    ]


def test_expect_matches_across_chunks(make: Make) -> None:
    console = make()
    console.feed(b"Welcome\r\nlog")
    threading.Timer(0.1, console.feed, (b"in: ",)).start()
    assert console.expect(["never", r"log(in): "], 5) == 1
    assert console.match.group(1) == "in"
    assert console.before == "Welcome\n"
    assert console.after == "login: "
    console.feed(b"next one")
    assert console.expect_exact("next", 5) == 0


def test_expect_keeps_what_follows_a_match(make: Make) -> None:
    console = make()
    console.feed(b"one two three")
    assert console.expect_exact("one", 5) == 0
    assert console.match == "one"
    assert console.expect("two", 5) == 0
    assert console.before == " "
    console.forget()
    assert console.expect(["three", pexpect.TIMEOUT], 0.1) == 1


def test_expect_keeps_what_did_not_match(make: Make) -> None:
    console = make()
    console.feed(b"log")
    with pytest.raises(WaitTimeout):
        console.expect("login", 0.1)
    assert console.expect([pexpect.TIMEOUT, "login"], 0.1) == 0
    console.feed(b"in: ")
    assert console.expect("login", 5) == 0


def test_expect_finds_the_first_of_much_text(make: Make) -> None:
    console = make()
    console.feed(b"login: " + b"x" * 100_000 + b"login: ")
    assert console.expect("login", 5) == 0
    assert console.before == ""
    assert console.expect("login", 5) == 0
    assert len(console.before) == 100_002


def test_expect_finds_a_match_across_what_is_dropped(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = make()
    console.feed(b"x" * (2**17 - 3) + b"login: ")
    flush()
    monkeypatch.setattr(console_module, "UNREAD_LIMIT", 2**17)
    assert console.expect("login", 5) == 0
    assert len(console.before) < 2**17


def test_typing(make: Make, typed: list[bytes]) -> None:
    console = make()
    console.sendline("ls")
    console.send("ab", char_delay=0.01)
    assert typed == [b"ls\r", b"a", b"b"]


@pytest.mark.usefixtures("unscaled")
def test_timeout_names_what_was_awaited_and_shows_the_last_lines(make: Make) -> None:
    console = make()
    console.feed(b"Starting\r\nstill here")
    with pytest.raises(WaitTimeout) as caught:
        console.expect("login: ", 0.2, "the login prompt")
    assert caught.value.message == "dom0: waited 0 s for the login prompt; last lines:"
    assert caught.value.lines == ("Starting", "still here")
    assert console.expect(["x", pexpect.TIMEOUT], 0.1) == 1


@pytest.mark.usefixtures("unscaled")
def test_trouble_ends_expect_at_once(make: Make) -> None:
    console = make()
    oops = b"[ 1.0] before\r\n[ 1.1] kernel BUG at fs/a.c:1!\r\n[ 1.2] Call Trace:\r\n"
    threading.Timer(0.1, console.feed, (oops,)).start()
    began = time.monotonic()
    with pytest.raises(GuestTrouble) as caught:
        console.expect("login: ", 60, "the login prompt")
    assert time.monotonic() - began < 3
    assert "dom0: kernel BUG while waiting for the login prompt (0 s of 60 s)" in str(caught.value)
    assert caught.value.lines == (
        *("[ 1.0] before", "[ 1.1] kernel BUG at fs/a.c:1!", "[ 1.2] Call Trace:"),
    )


def test_trouble_is_found_without_a_wait(make: Make) -> None:
    console = make()
    console.feed(b"[ 1.0] Kernel panic - not syncing: x\r\n")
    flush()
    assert [finding.name for finding in console.watch.findings] == ["kernel panic"]


def test_unfinished_line_is_scanned_and_reported_once(make: Make) -> None:
    console = make()
    console.feed(b"[ 1.0] Kernel panic - not syncing: x")
    console.watch.sleep_until_change(lambda: False, 5)
    assert len(console.watch.findings) == 1
    console.feed(b" and more\r\n")
    flush()
    assert len(console.watch.findings) == 1


def test_closed_console_ends_expect(make: Make) -> None:
    console = make()
    console.feed(b"bye")
    threading.Timer(0.1, console.close).start()
    with pytest.raises(RigError, match="the console was closed while waiting for the prompt"):
        console.expect("# ", 10, "the prompt")


def test_console_flood_stays_bounded(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "UNREAD_LIMIT", 2**16)
    console = make(half_limit=2**16)
    chunk = b"".join(b"line %06d of very many\r\n" % number for number in range(1000))
    for _ in range(100):
        console.feed(chunk)
    flush()
    assert console.dropped > 2**20
    assert sum(len(text) for text in console._unread) <= 2**16
    console.close()
    head = (tmp_path / "dom0.log.1").read_bytes()
    tail = (tmp_path / "dom0.log").read_text()
    assert len(head) <= 2**16
    assert len(tail) <= 2**16
    assert head.splitlines()[0].endswith(b"line 000000 of very many")
    assert re.match(r"\(cut here: \d+ lines, \d+\.\d MiB, after the end of dom0\.log\.1\)", tail)
    assert tail.splitlines()[-1].endswith("line 000999 of very many")


def test_expect_stays_bounded_while_nothing_matches(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "UNREAD_LIMIT", 2**16)
    console = make()
    stop = threading.Event()

    def print_without_end() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            console.feed(b"line %d\r\n" % number * 50)
            time.sleep(0.0005)

    printer = threading.Thread(target=print_without_end)
    printer.start()
    try:
        assert console.expect(["never", pexpect.TIMEOUT], 1) == 1
        assert len(console.before) < 2**17
    finally:
        stop.set()
        printer.join()


def test_long_line_is_cut(make: Make) -> None:
    console = make()
    console.feed(b"x" * 10_000)
    flush()
    assert [len(line) for line in console.last_lines(9)] == [4096, 4096, 1808]


def test_link_reads_the_last_bytes_before_it_closes() -> None:
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def at_once() -> None:
        theirs.sendall(b"last words")
        theirs.close()
        link.close()

    link = Link(ours, received.append)
    reactor().call(at_once)
    assert received == [b"last words"]


def test_link_does_not_wait_for_a_guest_that_reads_nothing() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, lambda data: None)
    sent = bytes(range(256)) * 2400
    taken = 0
    with theirs:
        theirs.settimeout(30)

        def flood() -> None:
            nonlocal taken
            for _ in range(9):
                link.send(sent)
                taken += 1
                flush()

        with pytest.raises(RigError, match="the guest reads nothing from its console"):
            flood()
        got = b""
        while len(got) < taken * len(sent):
            got += theirs.recv(65536)
    assert taken
    assert got == taken * sent
    reactor().call(link.close)


def test_tap_gets_raw_bytes(make: Make) -> None:
    console = make()
    received: list[bytes] = []
    stop = console.tap(received.append)
    console.feed(b"\x1b[1mraw\r\n")
    stop()
    console.feed(b"unread")
    flush()
    assert received == [b"\x1b[1mraw\r\n"]
