"""The two block drivers in a running guest: load, unload, swap, ask what runs.

A module reaches the guest as a file over the command channel, so a driver that was
rebuilt a second ago can be tried in a guest that has been up since the checkpoint.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emu.channel.channel import Channel, CommandFailed, CommandTimeout
from emu.errors import NotHeld, RigError

BACK = "xen_blkback"
FRONT = "xen_blkfront"

UNLOADED_WITHIN = 2.0
"""Seconds in which a module that was just in use can be unloaded."""
_REFUSED, _NOT_THERE = 4, 5
"""Exit statuses of the script: it is one command, for a command costs as much as its work."""
_UNLOADED = "[ ! -d /sys/module/$1 ] || rmmod $1"
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
    """Load `file` as `module`; the driver as the guest reports it.

    Raises NotHeld with the guest's own output when the kernel refuses it.
    """
    remote = f"/tmp/{file.name}"
    # A domU's console takes 130 kB a second; unpacking is quicker.
    channel.put(gzip.compress(file.read_bytes(), 6, mtime=0), f"{remote}.gz")
    arguments = [f"{name}={value}" for name, value in (parameters or {}).items()]
    note, _, text = _run(channel, _LOAD, module, remote, *arguments).partition(b"\nparameters\n")
    now = dict(
        line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line
    )
    return LoadedDriver(module, build_id_of_note(note), now)


def keep_counters(channel: Channel, file: Path) -> None:
    """Load the module that keeps drivers' counters, unless it is loaded. Raises as `load`."""
    module = file.stem.replace("-", "_")
    if channel.run(["test", "-d", f"/sys/module/{module}"], timeout=20, check=False).status:
        load(channel, module, file)


def unload(channel: Channel, module: str) -> None:
    """Unload `module`; nothing to do when it is not loaded. A module in use raises NotHeld.

    A disk that was just detached holds its driver until its last reader has closed it, a moment
    after both ends are closed: so it is tried for `UNLOADED_WITHIN`.
    """
    try:
        channel.wait_until(_UNLOADED, f"{module} to be unloaded", UNLOADED_WITHIN, module)
    except CommandTimeout as error:
        if not error.lines:
            raise  # rmmod refused nothing: it hangs, or the whole guest does
        raise NotHeld(f"{channel.name} did not let go of {module}: {error.lines[-1]}") from None


def swap(
    channel: Channel, module: str, file: Path, parameters: Mapping[str, str | int] | None = None
) -> LoadedDriver:
    """Unload `module` if it is there, then load `file` in its place."""
    unload(channel, module)
    return load(channel, module, file, parameters)


def _run(channel: Channel, script: str, module: str, *arguments: str) -> bytes:
    words = ["sh", "-c", script, "sh", module, *arguments]
    try:
        return channel.run(words, timeout=60).stdout
    except CommandFailed as failed:
        output = failed.result.stderr.decode(errors="replace").strip()
        if failed.status == _REFUSED:
            tail = channel.run(["sh", "-c", "dmesg | tail -n 5"], timeout=20).text.splitlines()
            name = Path(arguments[0]).name
            raise NotHeld(f"{channel.name} refused {name}: {output}", lines=tail) from None
        if failed.status == _NOT_THERE:
            raise NotHeld(f"{channel.name}: insmod succeeded, but {module} is not there") from None
        raise
