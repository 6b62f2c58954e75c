"""The last words of a guest's kernel, for a message."""

from __future__ import annotations

from emu.channel.channel import Channel


def log_tail(channel: Channel, count: int = 5) -> list[str]:
    """The last `count` lines of a kernel's log, named by its guest."""
    tail = channel.run(["sh", "-c", f"dmesg | tail -n {count}"], timeout=20, check=False).text
    return [f"{channel.name}: {line}" for line in tail.splitlines()]
