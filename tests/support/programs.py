"""Tests' own programs in guests, from guest/*.c, compiled on demand."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

from emu.channel.channel import Channel
from emu.images import agent
from emu.images.cache import Cache

SOURCES = Path(__file__).parent / "guest"


def put(name: str, channel: Channel, cache: Cache) -> str:
    """Compile guest/`name`.c and copy it to a guest, once. Returns its path there."""
    remote = f"/tmp/{name}"
    if channel.run(["test", "-x", remote], timeout=20, check=False).ok:
        return remote
    with cache.scratch(name) as folder:
        program, source = folder / name, SOURCES / f"{name}.c"
        subprocess.run([agent.CC, *agent.FLAGS, "-o", str(program), str(source)], check=True)
        # Packed: a channel into a domU is slow.
        channel.put(gzip.compress(program.read_bytes()), f"{remote}.gz")
    channel.run(["gunzip", f"{remote}.gz"], timeout=30)
    channel.run(["chmod", "755", remote], timeout=20)
    return remote
