"""Tests' own programs in guests, from guest/*.c, compiled on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

from emu.channel.channel import Channel
from emu.images import agent
from emu.images.cache import Cache

SOURCES = Path(__file__).parent / "guest"


def put(name: str, channel: Channel, cache: Cache) -> str:
    """Compile guest/`name`.c and copy it to a guest. Returns its path there."""
    remote = f"/tmp/{name}"
    with cache.scratch(name) as folder:
        program, source = folder / name, SOURCES / f"{name}.c"
        subprocess.run([agent.CC, *agent.FLAGS, "-o", str(program), str(source)], check=True)
        channel.put(program, remote, mode=0o755)
    return remote
