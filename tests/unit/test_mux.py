"""The channel on the event loop: what wakes a wait, what a wait costs, how a channel ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import agent_process
import pytest

from emu.channel.channel import Channel, ChannelLost
from emu.deadline import Deadline, poll
from emu.errors import RigError
from emu.machine.watch import Finding, GuestTrouble, Watch
from emu.reactor import reactor

BUG = Finding("kernel BUG", "dom0", "dom0", "kernel BUG at fs/a.c:1!", 1.0, 1)
AT_ONCE = 5.0
"""Seconds: much less than the limit of any wait here, and enough for a busy machine."""


class CountingGuard:
    """Raises `trouble` once it is set, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.trouble: RigError | None = None
        self.wakes: list[Callable[[], None]] = []

    def check(self, deadline: Deadline | None = None) -> None:
        self.asked += 1
        if self.trouble:
            raise self.trouble

    def on_trouble(self, wake: Callable[[], None]) -> Callable[[], None]:
        self.wakes.append(wake)
        return lambda: self.wakes.remove(wake)

    def report(self) -> None:
        self.trouble = RigError("dom0: kernel BUG")
        for wake in self.wakes:
            wake()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_process.build(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def guard() -> CountingGuard:
    return CountingGuard()


@pytest.fixture
def guest(program: Path, guard: CountingGuard) -> Iterator[Channel]:
    with (
        agent_process.serving(program) as (sock, _),
        Channel(sock, name="dom0", guard=guard) as channel,
    ):
        channel.hello(10)
        yield channel


@contextlib.contextmanager
def bridged(outer: Channel, program: Path, path: Path) -> Iterator[Channel]:
    """A channel through `outer` to a second agent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Channel(outer.bridge(str(path)), name="domU") as inner:
            sock, _ = listener.accept()
            with sock:
                fd = sock.fileno()
                process = subprocess.Popen([program, f"fd:{fd}"], pass_fds=[fd])
            inner.hello(10)
            try:
                yield inner
            finally:
                inner.close()
                process.terminate()
                process.wait(10)


def test_trouble_ends_a_command_at_once(
    guest: Channel, guard: CountingGuard, tmp_path: Path
) -> None:
    threading.Timer(0.3, guard.report).start()
    began = time.monotonic()
    with pytest.raises(RigError, match="kernel BUG"):
        guest.run(f"echo $$ > {tmp_path}/pid; exec sleep 1000", timeout=60)
    assert time.monotonic() - began < 0.3 + AT_ONCE
    pid = int((tmp_path / "pid").read_text())
    assert poll(lambda: not Path(f"/proc/{pid}").exists(), Deadline("its end", 10))


def test_trouble_ends_a_read_and_a_write(guest: Channel, guard: CountingGuard) -> None:
    with guest.spawn(["sleep", "1000"]) as process, ThreadPoolExecutor(2) as pool:
        read = pool.submit(process.read)
        write = pool.submit(process.write, bytes(1 << 24))
        time.sleep(0.3)
        guard.report()
        with pytest.raises(RigError, match="kernel BUG"):
            read.result(AT_ONCE)
        with pytest.raises(RigError, match="kernel BUG"):
            write.result(AT_ONCE)


def test_trouble_ends_a_ping_and_a_hello(program: Path, guard: CountingGuard) -> None:
    with (
        agent_process.serving(program) as (sock, agent),
        Channel(sock, name="dom0", guard=guard) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        channel.hello(10)
        agent.send_signal(signal.SIGSTOP)
        calls: tuple[Callable[[], object], ...] = (channel.ping, lambda: channel.hello(30))
        for call in calls:
            guard.trouble = None
            wait = pool.submit(call)
            time.sleep(0.3)
            assert not wait.done()
            guard.report()
            with pytest.raises(RigError, match="kernel BUG"):
                wait.result(AT_ONCE)
        agent.send_signal(signal.SIGCONT)


def test_trouble_does_not_end_a_stream(
    guest: Channel, guard: CountingGuard, program: Path, tmp_path: Path
) -> None:
    with bridged(guest, program, tmp_path / "channel") as inner:
        guard.report()
        assert inner.run(["echo", "still here"], timeout=10).stdout == b"still here\n"
        guard.trouble = None


def test_a_wait_does_not_poll(guest: Channel, guard: CountingGuard) -> None:
    guard.asked = 0
    guest.run("sleep 1.5", timeout=30)
    assert guard.asked <= 3


def test_a_watch_is_a_guard(program: Path) -> None:
    watch = Watch()
    with (
        agent_process.serving(program) as (sock, _),
        Channel(sock, name="dom0", guard=watch) as channel,
    ):
        channel.hello(10)
        threading.Timer(0.3, watch.report, (BUG,)).start()
        began = time.monotonic()
        with pytest.raises(
            GuestTrouble, match=r"kernel BUG while waiting for `sleep 99` to end \(\d"
        ):
            channel.run(["sleep", "99"], timeout=60)
        assert time.monotonic() - began < 0.3 + AT_ONCE


def test_a_watch_wakes_its_listeners_when_it_would_raise() -> None:
    watch, woken = Watch(), threading.Event()
    stop = watch.on_trouble(woken.set)
    watch.notify()
    with watch.allow("kernel BUG"):
        watch.report(BUG)
    assert not woken.is_set()
    with watch.after_the_fact():
        watch.report(BUG)
        assert not woken.is_set()
    assert woken.is_set()
    woken.clear()
    watch.fail(RigError("QEMU ended"))
    assert woken.is_set()
    woken.clear()
    stop()
    watch.report(BUG)
    assert not woken.is_set()


def test_channels_have_no_threads(guest: Channel, program: Path, tmp_path: Path) -> None:
    before = threading.enumerate()
    with bridged(guest, program, tmp_path / "channel") as inner, inner.spawn(["cat"]):
        assert threading.enumerate() == before
    assert guest.run(["echo", "fine"], timeout=5).stdout == b"fine\n"


def test_a_wait_in_the_event_loop_is_refused(guest: Channel) -> None:
    with pytest.raises(RuntimeError, match="the reactor can't wait"):
        reactor().call(lambda: guest.run(["sleep", "1"], timeout=5))
    assert guest.run(["echo", "fine"], timeout=5).stdout == b"fine\n"


def test_the_end_of_a_channel_ends_those_on_it(
    guest: Channel, program: Path, tmp_path: Path
) -> None:
    with bridged(guest, program, tmp_path / "channel") as inner, ThreadPoolExecutor(1) as pool:
        wait = pool.submit(inner.run, ["sleep", "1000"], timeout=60)
        time.sleep(0.3)
        guest.close()
        with pytest.raises(ChannelLost, match="domU: the channel is gone: dom0: the channel was"):
            wait.result(AT_ONCE)


def test_output_that_came_before_a_bridge_was_used_is_not_lost(guest: Channel) -> None:
    """A domU's agent may speak before anybody listens."""
    process = guest.spawn("printf 'too early'; sleep 1000")
    assert poll(lambda: process._waiting[1], Deadline("its output", 10))
    with Channel(process, name="domU") as inner:
        assert not process._waiting[1]
        with pytest.raises(RigError, match="no guest agent answered"):
            inner.hello(0.2)


def test_close_does_not_wait_for_a_stopped_agent(program: Path) -> None:
    with agent_process.serving(program) as (sock, agent):
        channel = Channel(sock, name="dom0")
        channel.hello(10)
        commands = [channel.spawn(["sleep", "1000"]) for _ in range(4)]
        agent.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            writes = [pool.submit(command.write, bytes(1 << 22)) for command in commands]
            time.sleep(0.3)
            began = time.monotonic()
            channel.close()
            assert time.monotonic() - began < 3
            for write in writes:
                with pytest.raises(ChannelLost, match="closed"):
                    write.result(1)
        agent.send_signal(signal.SIGCONT)


def test_hellos_to_a_stopped_agent_do_not_pile_up(program: Path) -> None:
    with agent_process.serving(program) as (sock, agent):
        agent.send_signal(signal.SIGSTOP)
        with Channel(sock, name="dom0") as channel:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for _ in range(20):
                with pytest.raises(RigError):
                    channel.hello(0.01)
            assert len(channel._mux._queue) <= 1
            agent.send_signal(signal.SIGCONT)
            channel.hello(10)
            assert channel.run(["echo", "hello"], timeout=5).stdout == b"hello\n"
