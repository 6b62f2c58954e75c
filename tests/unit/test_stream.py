"""emu-stream: from a pipe over TCP to a program or another pipe."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
import sanitized

HERE = "127.0.0.1"
DATA = os.urandom(3 << 20)
"""More than a pipe and a socket hold."""


@pytest.fixture(scope="module")
def stream() -> Path:
    """emu-stream, with ASan and UBSan."""
    return sanitized.program("emu-stream")


@pytest.fixture
def port() -> str:
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        return str(taken.getsockname()[1])


def listen(stream: Path, port: str, *program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [stream, "listen", HERE, port, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=sanitized.environment(),
    )


def connect(stream: Path, port: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [str(stream), "connect", HERE, port]
    return subprocess.run(
        command, input=data, capture_output=True, timeout=30, env=sanitized.environment()
    )


def test_program_gets_connection_as_stdin_and_stdout(stream: Path, port: str) -> None:
    with listen(stream, port, "sh", "-c", "head -c 3145728 | wc -c") as listener:
        answer = connect(stream, port, DATA)
        assert (answer.returncode, answer.stdout) == (0, b"3145728\n")
        assert listener.wait(10) == 0


def test_data_is_copied_unchanged(stream: Path, port: str, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.write_bytes(DATA)
    with listen(stream, port, "-") as listener, source.open("rb") as file:
        sender = subprocess.Popen(
            [stream, "connect", HERE, port], stdin=file, env=sanitized.environment()
        )
        assert listener.stdout
        assert listener.stdout.read() == DATA
        assert (sender.wait(10), listener.wait(10)) == (0, 0)


def test_sender_fails_when_receiver_is_gone(stream: Path, port: str) -> None:
    with listen(stream, port, "sh", "-c", "head -c 1000 > /dev/null"):
        answer = connect(stream, port, DATA)
    assert answer.returncode == 1
    assert b"emu-stream: " in answer.stderr


def test_end_of_input_reaches_receiver(stream: Path, port: str) -> None:
    with listen(stream, port, "sh", "-c", "cat > /dev/null; echo all of it"):
        assert connect(stream, port, b"few").stdout == b"all of it\n"


def test_invalid_arguments_are_refused(stream: Path) -> None:
    for arguments in (
        [],
        ["listen", HERE, "8000"],
        ["connect", "host", "8000"],
        ["connect", HERE, "x"],
    ):
        refused = subprocess.run(
            [stream, *arguments], capture_output=True, env=sanitized.environment()
        )
        assert refused.returncode == 2
        assert refused.stderr.startswith(b"usage: emu-stream")
