"""The command channel with the real guest agent: over a socket pair, and over a tty."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sanitized
from processes import alive, gone
from streams import Change, Faulty, Terminal

from emu.channel import frames
from emu.channel.channel import Channel, ChannelLost, CommandFailed, CommandTimeout, Process
from emu.channel.files import patience
from emu.channel.frames import ToGuest
from emu.channel.mux import WINDOW
from emu.deadline import scale
from emu.errors import RigError
from emu.images import agent
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.reactor import reactor

MIB = 1 << 20


@pytest.fixture(scope="session")
def program() -> Path:
    """emu-agent, with ASan and UBSan."""
    return sanitized.program("emu-agent")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """emu-agent as built for guests."""
    return agent.build(BuildContext(Cache(tmp_path_factory.mktemp("cache")))).agent


@contextlib.contextmanager
def serving(program: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """An agent, and the controller's end of its socket."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [program, f"fd:{theirs.fileno()}"],
        pass_fds=[theirs.fileno()],
        env=sanitized.environment(),
    )
    theirs.close()
    try:
        yield ours, process
    finally:
        ours.close()
        assert process.wait(10) in (0, -signal.SIGKILL)


@pytest.fixture
def guest(program: Path) -> Iterator[Channel]:
    """A channel over a socket pair, as over virtio-serial."""
    with serving(program) as (sock, _), Channel(sock, name="dom0") as channel:
        channel.hello(10)
        yield channel


@pytest.fixture
def tty_guest(program: Path) -> Iterator[Channel]:
    """A channel over a terminal, as over a domU's console."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    process = subprocess.Popen([program, os.ttyname(slave)], env=sanitized.environment())
    try:
        with Channel(Terminal(master), name="domU") as channel:
            channel.hello(10)
            yield channel
    finally:
        process.terminate()
        assert process.wait(10) == 0
        os.close(slave)
        os.close(master)


def test_process_that_vanishes_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stat file could be opened but not be read."""

    def read_text(path: Path) -> str:
        raise ProcessLookupError(errno.ESRCH, "No such process", str(path))

    monkeypatch.setattr(Path, "read_text", read_text)
    assert not alive(os.getpid())


def open_files(pid: int) -> Iterator[Path]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield descriptor.readlink()


def echo_exactly(channel: Channel, count: int, rng: random.Random) -> None:
    for _ in range(count):
        out, err = rng.randbytes(rng.randrange(5000)), rng.randbytes(rng.randrange(300))
        script = f"head -c {len(out)}; cat >&2; exit {len(out) % 256}"
        result = channel.run(script, input=out + err, timeout=30, check=False)
        assert (result.stdout, result.stderr, result.status) == (out, err, len(out) % 256)


def test_thousand_commands_are_exact(guest: Channel) -> None:
    rng = random.Random(1)
    for _ in range(1000):
        data = rng.randbytes(rng.randrange(5000))
        assert guest.run(["cat"], input=data, timeout=30).stdout == data


def test_tty_is_exact(tty_guest: Channel) -> None:
    echo_exactly(tty_guest, 50, random.Random(2))
    every = bytes(range(256)) * 4096
    assert tty_guest.run(["cat"], input=every, timeout=30).stdout == every


def test_agent_pauses_before_reopening_tty(program: Path, tmp_path: Path) -> None:
    """The kernel releases the old tty from a work queue, which must run first."""
    link = tmp_path / "tty"
    (old, old_slave), (master, slave) = os.openpty(), os.openpty()
    os.set_blocking(old, False)
    os.set_blocking(master, False)
    link.symlink_to(os.ttyname(old_slave))
    agent = subprocess.Popen([program, link], env=sanitized.environment())
    try:
        with Channel(Terminal(old), name="before") as before:
            before.hello(10)
        link.unlink()
        link.symlink_to(os.ttyname(slave))
        hung_up = time.monotonic()
        os.close(old_slave)
        os.close(old)
        while Path(os.ttyname(slave)) not in open_files(agent.pid):
            assert time.monotonic() < hung_up + 10
        assert time.monotonic() > hung_up + 0.15, "opened without a pause"
        with Channel(Terminal(master), name="after") as after:
            after.hello(10)
            echo_exactly(after, 1, random.Random(3))
    finally:
        agent.terminate()
        assert agent.wait(10) == 0
        os.close(slave)
        os.close(master)


def test_parallel_commands_are_exact(guest: Channel) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(echo_exactly, guest, 10, random.Random(seed)) for seed in range(16)]
        for job in jobs:
            job.result()


def test_exit_of_command_is_reported(guest: Channel) -> None:
    assert guest.run("exit 7", timeout=5, check=False).status == 7
    killed = guest.run("kill -TERM $$", timeout=5, check=False)
    assert (killed.status, killed.signal) == (None, signal.SIGTERM)
    with pytest.raises(CommandFailed, match="dom0: `no-such` could not be started: No such file"):
        guest.run(["no-such"], timeout=5)
    with pytest.raises(CommandFailed, match="could not be started"):
        guest.run(["true"], cwd="/no/such", timeout=5)
    with pytest.raises(CommandFailed, match="ended with status 3") as failed:
        guest.run("echo so it is; echo why >&2; exit 3", timeout=5)
    assert failed.value.lines == ("why",)


def test_arguments_environment_directory(guest: Channel) -> None:
    odd = bytes(set(range(1, 256)))
    result = guest.run(["printf", "%s|%s|", odd, ""], timeout=5)
    assert result.stdout == odd + b"||"
    result = guest.run(
        'echo "$X$HOME"; pwd; cat', env={"X": " a\nb", "HOME": "!"}, cwd="/usr", timeout=5
    )
    assert result.stdout == b" a\nb!\n/usr\n"


def test_timeout_kills_process_tree(guest: Channel, tmp_path: Path) -> None:
    # Plain, ignoring signals, in its own session, and an orphan in its own process group.
    sleep = f"sleep 1000.{os.getpid()}"
    python = shlex.quote(sys.executable)
    own_group = f"{python} -c 'import os; os.setpgid(0, 0); os.system(\"exec {sleep}4\")'"
    script = (
        f"{sleep}1 & (trap '' TERM HUP; {sleep}2) & setsid {sleep}3 & ({own_group} &); "
        "echo so far; wait"
    )
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(guest.run, script, timeout=3)
        assert wait_for(lambda: len(running(sleep)) == 4, seconds=2.5)
        with pytest.raises(
            CommandTimeout, match=f"did not end within {3 * scale():g} s"
        ) as timeout:
            job.result()
    assert timeout.value.lines == ("so far",)
    left = [pid for pid in running(sleep) if not gone(pid, within=2)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def running(command: str) -> list[int]:
    """The processes whose command line starts with `command`."""
    found = subprocess.run(["pgrep", "-f", f"^{command}"], capture_output=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_background_process_survives_command(guest: Channel) -> None:
    began = time.monotonic()
    result = guest.run("(sleep 2; echo late; exec sleep 1000) & echo $!", timeout=5)
    assert time.monotonic() - began < 2
    time.sleep(2.3)
    pid = int(result.stdout)
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("kind", "size"), [("bytes", 0), ("bytes", 3), ("file", 100)])
def test_files_are_copied_both_ways(guest: Channel, tmp_path: Path, kind: str, size: int) -> None:
    data = random.Random(3).randbytes(MIB) * size
    source = tmp_path / "source"
    source.write_bytes(data)
    remote, local = tmp_path / "remote", tmp_path / "local"
    guest.put(data if kind == "bytes" else source, str(remote), mode=0o750)
    assert remote.stat().st_mode & 0o7777 == 0o750
    got = guest.get(str(remote), local if kind == "file" else None)
    assert (got if kind == "bytes" else local.read_bytes()) == data


def test_failed_file_copy_leaves_nothing(guest: Channel, program: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"before")
    with pytest.raises(CommandFailed, match="put") as failed:
        guest.put(b"x", f"{tmp_path}/none/file")
    assert "No such file or directory" in failed.value.lines[0]
    with pytest.raises(CommandFailed, match="get"):
        guest.get(f"{tmp_path}/none", tmp_path / "local")
    for tail in (b"", frames.trailer(10, 0), frames.trailer(9, zlib.crc32(b"half of it"))):
        process = guest.spawn([str(program), "put", "644", str(target)])
        process.write(b"half of it" + tail)
        process.close_stdin()
        assert process.wait(5).status == 1
        # A C library may write a long message in pieces.
        said = b"".join(iter(functools.partial(process.read, stream=2), b""))
        assert b"not those that were sent" in said
    process = guest._spawn(
        ("emu-agent", "put", "644", str(target)), frames.ExecFlag.SELF | frames.ExecFlag.GENTLE
    )
    assert wait_for(lambda: list(tmp_path.glob("target.emu-*")))
    process.close()
    assert wait_for(lambda: not list(tmp_path.glob("target.emu-*")))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(CommandTimeout):
        guest.get(str(fifo), tmp_path / "local", timeout=0.2)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "target"]


def test_file_timeout_follows_size(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 100 * 2**20)
    assert patience(b"a module") == pytest.approx(60.0, abs=0.1)
    assert patience(large) == 260.0, "less than the 600 s that a test has"


def test_streaming_both_ways(guest: Channel) -> None:
    with guest.spawn(["cat"]) as process:
        for word in (b"one", b"two", b"three"):
            process.write(word)
            assert process.read(timeout=5) == word
        process.close_stdin()
        assert process.read(timeout=5) == b""
        assert process.wait(5).status == 0
        with pytest.raises(BrokenPipeError):
            process.write(b"more")
    output: list[bytes] = []
    process = guest.spawn("echo out; echo err >&2", on_stdout=output.append)
    assert process.wait(5).status == 0
    assert output == [b"out\n"]


def test_unread_input_is_no_error(guest: Channel) -> None:
    assert guest.run("exec <&-; sleep 0.1", input=bytes(4 * MIB), timeout=10).ok
    assert guest.run("head -c 1", input=bytes(4 * MIB), timeout=10).stdout == b"\0"


def test_slow_reader_blocks_only_itself(plain: Path) -> None:
    with serving(plain) as (sock, server), Channel(sock, name="dom0") as channel:
        channel.hello(10)
        flood = channel.spawn("yes 0123456 | head -c 64000000; echo end >&2")
        stuck = channel.spawn(["sleep", "1000"])
        filler = threading.Thread(target=pour, args=(stuck,))
        filler.start()
        time.sleep(0.5)
        assert flood.ended is None
        assert sum(len(part) for part in flood._waiting[1]) <= WINDOW
        began = time.monotonic()
        assert channel.run(["echo", "quick"], timeout=5).stdout == b"quick\n"
        assert time.monotonic() - began < 0.5
        assert resident(server.pid) < 4 * MIB
        received = b"".join(iter(lambda: flood.read(timeout=10), b""))
        assert received == b"0123456\n" * 8_000_000
        stuck.close()
        filler.join(5)
        assert not filler.is_alive()


def pour(process: Process) -> None:
    with contextlib.suppress(BrokenPipeError):
        process.write(bytes(8 * MIB))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_agent_refuses_too_many_commands(guest: Channel) -> None:
    sleepers = [guest.spawn(["sleep", "1000"]) for _ in range(128)]
    refused = guest.run(["true"], timeout=5, check=False)
    assert refused.status == 127
    assert b"temporarily unavailable" in refused.stderr
    for sleeper in sleepers:
        sleeper.kill()
    assert {sleeper.wait(10).signal for sleeper in sleepers} == {signal.SIGKILL}
    assert guest.run(["echo", "again"], timeout=5).stdout == b"again\n"


def test_shell_has_terminal(guest: Channel) -> None:
    output = bytearray()
    shell = guest.spawn(["/bin/sh"], pty=(24, 80), on_stdout=output.extend)
    shell.write(b"stty -echo; PS1=; tty; stty size\n")
    assert wait_for(lambda: b"24 80" in output and b"/dev/pts/" in output)
    shell.resize(50, 132)
    shell.write(b"stty size; sleep 1000\n")
    assert wait_for(lambda: b"50 132" in output)
    # Repeatedly: the shell may not have started its sleep yet.
    assert wait_for(lambda: interrupted(shell, output), pause=0.2)
    shell.write(b"exit 5\n")
    assert shell.wait(5).status == 5


def interrupted(shell: Process, output: bytearray) -> bool:
    shell.write(b"\x03echo still\n")
    return b"still" in output


def wait_for(holds: Callable[[], object], seconds: float = 5.0, pause: float = 0.01) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


@pytest.mark.parametrize("garbage", ["noise", "half a frame", "own frames", "hello cut short"])
def test_new_peer_connects_despite_garbage(program: Path, garbage: str) -> None:
    nonce = bytes(16)
    before = {
        "noise": random.Random(5).randbytes(100_000),
        "half a frame": frames.hello(nonce, 4096, 4096)
        + frames.encode(ToGuest.PING, 1, 1, bytes(30_000))[:500],
        "own frames": frames.encode(65, 0, 0, bytes(32), magic=frames.TO_HOST) * 50,
        "hello cut short": frames.hello(nonce, 4096, 4096)[:40],
    }[garbage]
    with serving(program) as (sock, _):
        sock.sendall(before)
        with Channel(sock, name="dom0") as channel:
            channel.hello(10)
            assert channel.run(["echo", "hello"], timeout=5).stdout == b"hello\n"


def test_new_peer_ends_commands_of_old_one(program: Path, tmp_path: Path) -> None:
    with serving(program) as (sock, _):
        # A peer that vanished silently, as one in a checkpoint does.
        sock.sendall(frames.hello(bytes(16), 32768, 1 << 20))
        script = f"echo $$ > {tmp_path}/pid; exec yes"
        flags = frames.ExecFlag.NO_STDIN
        payload = frames.exec_payload([b"sh", b"-c", script.encode()], flags)
        sock.sendall(frames.encode(ToGuest.EXEC, 1, 1, payload))
        assert wait_for(lambda: (tmp_path / "pid").exists())
        time.sleep(0.1)
        pid = int((tmp_path / "pid").read_text())
        with Channel(sock, name="dom0") as channel:
            channel.hello(10)
            assert gone(pid)
            assert channel.run(["echo", "hello"], timeout=5).stdout == b"hello\n"


def test_window_beyond_the_maximum_does_not_stop_output(program: Path) -> None:
    """Credit added to a window of 4 GiB - 1 does not wrap."""
    size = 200_000
    command = [b"head", b"-c", str(size).encode(), b"/dev/zero"]
    payload = frames.exec_payload(command, frames.ExecFlag.NO_STDIN)
    credit = frames.encode(ToGuest.CREDIT, 1, 2, (1).to_bytes(4, "little"), stream=1)
    with serving(program) as (sock, _):
        sock.settimeout(5 * scale())
        hello = frames.hello(bytes(16), 32768, 2**32 - 1)
        sock.sendall(hello + frames.encode(ToGuest.EXEC, 1, 1, payload) + credit)
        received = 0
        while received < size:
            received += len(sock.recv(65536))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def run_until_lost(channel: Channel) -> None:
    for _ in range(20):
        with contextlib.suppress(CommandTimeout):
            channel.run(["echo", "a line of some length"], timeout=0.2)


@pytest.mark.parametrize("change", [flip, lambda data: data[:30] + data[31:]])
@pytest.mark.parametrize("way", ["on_send", "on_recv"])
def test_channel_recovers_from_damage(
    program: Path, way: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emu.channel.channel._KILL_GRACE", 0.2)
    troubles: list[ChannelLost] = []
    with serving(program) as (sock, _):
        stream = Faulty(sock)
        with Channel(stream, name="domU", on_trouble=troubles.append) as channel:
            channel.hello(10)
            sleeper = channel.spawn(["sleep", "1000"])
            setattr(stream, way, change)
            # A lost byte is detected with the next frame.
            with pytest.raises(ChannelLost, match="came damaged"):
                run_until_lost(channel)
            setattr(stream, way, lambda data: data)
            channel.hello(10)
            with pytest.raises(ChannelLost, match="while `sleep 1000` ran"):
                sleeper.wait(5)
            assert channel.run(["echo", "well"], timeout=5).stdout == b"well\n"
        assert len(troubles) <= 1


def test_missing_frame_is_detected(program: Path) -> None:
    with serving(program) as (sock, _):
        stream = Faulty(sock)
        with Channel(stream, name="domU") as channel:
            channel.hello(10)
            stream.on_send = lambda data: b""
            lost = channel.spawn(["sleep", "1000"])
            time.sleep(0.1)
            stream.on_send = lambda data: data
            with pytest.raises(ChannelLost, match="what the guest got came damaged: a frame is"):
                channel.run(["true"], timeout=5)
            with pytest.raises(ChannelLost):
                lost.wait(5)


def test_dead_agent_ends_all_waits(program: Path) -> None:
    troubles: list[ChannelLost] = []
    with (
        serving(program) as (sock, server),
        Channel(sock, name="dom0", on_trouble=troubles.append) as channel,
        ThreadPoolExecutor(3) as pool,
    ):
        channel.hello(10)
        waits = [pool.submit(channel.run, ["sleep", "1000"], timeout=60) for _ in range(3)]
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        assert wait_for(lambda: len(children.read_text().split()) == 3)
        orphans = [int(pid) for pid in children.read_text().split()]
        began = time.monotonic()
        server.kill()
        for wait in waits:
            with pytest.raises(ChannelLost, match=r"dom0: the channel is gone.*sleep 1000"):
                wait.result()
        assert time.monotonic() - began < 1
        with pytest.raises(ChannelLost):
            channel.ping()
        assert len(troubles) == 1
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)


def test_a_guest_behind_a_guest(guest: Channel, program: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "channel")
    with Channel(guest.bridge(path), name="domU") as inner:
        with pytest.raises(
            ChannelLost, match=r"domU: the channel is gone: dom0: .*connect"
        ) as gone:
            inner.hello(5)
        assert "No such file" in str(gone.value)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with Channel(guest.bridge(path), name="domU") as inner:
            sock, _ = listener.accept()
            server = subprocess.Popen(
                [program, f"fd:{sock.fileno()}"],
                pass_fds=[sock.fileno()],
                env=sanitized.environment(),
            )
            sock.close()
            inner.hello(10)
            data = random.Random(6).randbytes(8 * MIB)
            assert inner.run(["cat"], input=data, timeout=20).stdout == data
            echo_exactly(inner, 20, random.Random(7))
            server.kill()
            server.wait()
            with pytest.raises(ChannelLost):
                inner.run(["true"], timeout=5)
    assert guest.run(["echo", "fine"], timeout=5).stdout == b"fine\n"


def test_bridge_to_terminal(guest: Channel) -> None:
    master, slave = os.openpty()
    bridge = guest.bridge(os.ttyname(slave), tty=True)
    assert wait_for(lambda: termios.tcgetattr(slave)[3] == 0)  # no echo, no line editing
    every = bytes(range(256))
    os.write(master, every)
    received = b""
    while len(received) < len(every):
        received += bridge.read(timeout=5)
    bridge.write(every)
    assert wait_for(lambda: select.select([master], [], [], 0)[0])
    assert os.read(master, 1024) == every
    os.close(slave)
    os.close(master)
    assert bridge.wait(5).status == 0


def test_nothing_is_left_after_close(program: Path) -> None:
    reactor()  # it has the one thread of all channels, and is there to stay
    before = threading.active_count()
    with serving(program) as (sock, server):
        channel = Channel(sock, name="dom0")
        channel.hello(10)
        pid = int(channel.run("sleep 1000 > /dev/null & echo $!", timeout=5).stdout)
        sleeper = channel.spawn(["sleep", "1000"])
        assert channel.ping() < 1
        channel.close()
        channel.close()
        assert threading.active_count() == before
        with pytest.raises(ChannelLost, match="closed"):
            sleeper.wait(5)
        assert server.wait(5) == 0
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)


def test_missing_agent_is_reported() -> None:
    ours, theirs = socket.socketpair()
    error = pytest.raises(
        RigError,
        match=f"dom0: no guest agent answered within {re.escape(f'{0.3 * scale():.2g}')} s",
    )
    with theirs, Channel(ours, name="dom0") as channel, error:
        channel.hello(0.3)
