"""The guest agent as a process of this machine, with a channel to it over a socket pair."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from emu.images import agent
from emu.images.cache import Cache
from emu.images.context import BuildContext


def build(directory: Path) -> Path:
    """Compile emu-agent in a cache in `directory`; its path."""
    return agent.build(BuildContext(Cache(directory))).agent


@contextlib.contextmanager
def serving(program: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A running agent, and our end of the socket that it serves."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([program, f"fd:{theirs.fileno()}"], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        yield ours, process
    finally:
        ours.close()
        assert process.wait(10) in (0, -signal.SIGKILL)
