"""Data on a disk, moved past the page cache of the guest that has it, and known by its sum."""

from __future__ import annotations

from emu.channel.channel import Channel

_WRITE = """
set -e
dd if=/dev/urandom of=/tmp/data bs=1M count=$2 2>/dev/null
dd if=/tmp/data of=/dev/$1 bs=1M oflag=direct conv=fsync 2>/dev/null
sha256sum < /tmp/data
rm /tmp/data
"""
_READ = "dd if=/dev/$1 bs=1M count=$2 iflag=direct 2>/dev/null | sha256sum"


def write(channel: Channel, disk: str, mib: int, timeout: float) -> str:
    """Write random data to the first `mib` MiB of `disk`; its SHA-256.

    `timeout` in seconds before scaling. Raises CommandFailed, CommandTimeout.
    """
    return _sum(channel, _WRITE, disk, mib, timeout)


def read(channel: Channel, disk: str, mib: int, timeout: float) -> str:
    """SHA-256 of the first `mib` MiB of `disk`; otherwise as `write`."""
    return _sum(channel, _READ, disk, mib, timeout)


def _sum(channel: Channel, script: str, disk: str, mib: int, timeout: float) -> str:
    answer = channel.run(["sh", "-c", script, "sh", disk, str(mib)], timeout=timeout)
    return answer.text.split()[0]
