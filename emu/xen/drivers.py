"""The two block drivers in a running guest: load, unload, swap, ask what runs.

A module reaches the guest as a file over the command channel, so a driver that was
rebuilt a second ago can be tried in a guest that has been up since the checkpoint.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emu.channel.channel import Channel, CommandFailed
from emu.errors import NotHeld, RigError

BACK = "xen_blkback"
FRONT = "xen_blkfront"

_KEPT, _REFUSED, _NOT_THERE = 3, 4, 5
"""Exit statuses of the scripts: each is one command, for a command costs as much as its work."""
# A module in use is tried again, 20 times in 2 s.
_UNLOAD = f"""
n=0
while [ -d /sys/module/$1 ] && ! said=$(rmmod $1 2>&1); do
    n=$((n + 1)); [ $n -gt 20 ] && {{ echo "$said" >&2; exit {_KEPT}; }}
    usleep 100000
done
"""
_LOAD = f"""
module=$1; shift
gunzip -f "$1.gz" || exit {_REFUSED}
insmod "$@" || exit {_REFUSED}
cd /sys/module/$module 2> /dev/null || exit {_NOT_THERE}
cat notes/.note.gnu.build-id; printf '\\nparameters\\n'
cd parameters 2> /dev/null && grep -s '' *
exit 0
"""


@dataclass(frozen=True)
class LoadedDriver:
    """A driver as the running guest reports it.

    `build_id` is the hex of the GNU build id note in /sys/module; `parameters` holds
    every readable one.
    """

    module: str
    build_id: str
    parameters: Mapping[str, str]


def build_id_of_note(note: bytes) -> str:
    """The id in a `.note.gnu.build-id` section (ELF note: name, description, type 3)."""
    if len(note) < 16:
        raise RigError(f"a build-id note of {len(note)} bytes is too short")
    name_size = int.from_bytes(note[0:4], "little")
    size = int.from_bytes(note[4:8], "little")
    start = 12 + (name_size + 3) // 4 * 4
    if note[8:12] != b"\3\0\0\0" or len(note) < start + size:
        raise RigError("a build-id note of unknown form")
    return note[start : start + size].hex()


def load(
    channel: Channel, module: str, file: Path, parameters: Mapping[str, str | int] | None = None
) -> LoadedDriver:
    """Load `file` as `module` and say what runs now.

    Raises NotHeld with the guest's own words when the kernel refuses it.
    """
    return _load(channel, _LOAD, module, file, parameters)


def unload(channel: Channel, module: str) -> None:
    """Unload `module`; nothing to do when it is not loaded. A module in use raises NotHeld.

    A disk that was just detached holds its driver until its last reader has closed it, a
    moment after both ends are through: hence the patience.
    """
    _run(channel, _UNLOAD, module)


def swap(
    channel: Channel, module: str, file: Path, parameters: Mapping[str, str | int] | None = None
) -> LoadedDriver:
    """Unload `module` if it is there, then load `file` in its place."""
    return _load(channel, _UNLOAD + _LOAD, module, file, parameters)


def _load(
    channel: Channel,
    script: str,
    module: str,
    file: Path,
    parameters: Mapping[str, str | int] | None,
) -> LoadedDriver:
    remote = f"/tmp/{file.name}"
    # A domU's console takes 130 kB a second; unpacking is quicker.
    channel.put(gzip.compress(file.read_bytes(), 6, mtime=0), f"{remote}.gz")
    arguments = [f"{name}={value}" for name, value in (parameters or {}).items()]
    note, _, text = _run(channel, script, module, remote, *arguments).partition(b"\nparameters\n")
    now = dict(
        line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line
    )
    return LoadedDriver(module, build_id_of_note(note), now)


def _run(channel: Channel, script: str, module: str, *arguments: str) -> bytes:
    words = ["sh", "-c", script, "sh", module, *arguments]
    try:
        return channel.run(words, timeout=60).stdout
    except CommandFailed as failed:
        said = failed.result.stderr.decode(errors="replace").strip()
        if failed.status == _KEPT:
            raise NotHeld(f"{channel.name} did not let go of {module}: {said}") from None
        if failed.status == _REFUSED:
            tail = channel.run(["sh", "-c", "dmesg | tail -n 5"], timeout=20).text.splitlines()
            name = Path(arguments[0]).name
            raise NotHeld(f"{channel.name} refused {name}: {said}", lines=tail) from None
        if failed.status == _NOT_THERE:
            raise NotHeld(f"{channel.name}: insmod succeeded, but {module} is not there") from None
        raise
