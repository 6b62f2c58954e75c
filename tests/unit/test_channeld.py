"""emu-channeld as libxl of 4.20 starts it first: to be asked for its options, and told to quit."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sanitized

WITHIN = 30.0
"""Seconds for an answer."""


class Probe:
    """libxl's side of it."""

    def __init__(self, place: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place / "qmp"))
            listener.listen()
            fd = listener.fileno()
            chardev = f"socket,id=libxl-cmd,fd={fd},server=on,wait=off"
            command = [str(sanitized.program("emu-channeld")), "-S", "-machine", "none,accel=xen"]
            command += ["-chardev", chardev, "-mon", "chardev=libxl-cmd,mode=control"]
            self.process = subprocess.Popen(
                command, stderr=subprocess.PIPE, pass_fds=[fd], env=sanitized.environment()
            )
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WITHIN)
        self._socket.connect(str(place / "qmp"))
        self._lines = self._socket.makefile("r")
        self.greeting = json.loads(self._lines.readline())

    def ask(self, command: str, number: int = 1) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "id": number}).encode() + b"\r\n")
        answer = json.loads(self._lines.readline())
        assert answer["id"] == number
        return answer["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Probe]:
    made = Probe(tmp_path)
    with made.process:
        yield made
        made.close()
        made.process.kill()


def test_probe_is_answered_until_it_hangs_up(probe: Probe) -> None:
    assert "QMP" in probe.greeting
    assert probe.ask("qmp_capabilities") == {}
    assert probe.ask("query-command-line-options", 7) == []
    assert probe.ask("quit", 8) == {}
    probe.close()
    assert probe.process.wait(WITHIN) == 0


def test_queries_of_all_libxl_have_the_form_they_expect(probe: Probe) -> None:
    assert probe.ask("query-chardev") == []
    assert probe.ask("query-vnc") == {"enabled": False}


def test_without_domain_and_socket_it_is_wrong_usage() -> None:
    done = subprocess.run(
        [sanitized.program("emu-channeld"), "-chardev", "socket,id=libxl-cmd,path=/run/x"],
        capture_output=True,
        text=True,
        check=False,
        env=sanitized.environment(),
    )
    assert (done.returncode, done.stderr[:20]) == (2, "usage: emu-channeld ")
