"""The two block drivers in a running guest: load, unload, swap, ask what runs.

A module reaches the guest as a file over the command channel, so a driver that was
rebuilt a second ago can be tried in a guest that has been up since the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emu.errors import NotHeld, RigError
from emu.machine.channel import Channel, CommandFailed

BACK = "xen_blkback"
FRONT = "xen_blkfront"

_LET_GO = 20
"""Tries, 0.1 s apart, to unload a module that is in use."""

_NOTE = "/sys/module/{}/notes/.note.gnu.build-id"


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


def loaded(channel: Channel, module: str) -> LoadedDriver | None:
    """What `module` is in the guest behind `channel`; None when it is not loaded."""
    script = (
        f"cd /sys/module/{module} 2>/dev/null || exit 3; cat notes/.note.gnu.build-id; "
        "printf '\\nparameters\\n'; cd parameters 2>/dev/null && grep -s '' * ; exit 0"
    )
    answer = channel.run(["sh", "-c", script], timeout=20, check=False)
    if answer.status == 3:
        return None
    note, _, text = answer.stdout.partition(b"\nparameters\n")
    parameters = dict(
        line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line
    )
    return LoadedDriver(module, build_id_of_note(note), parameters)


def load(
    channel: Channel, module: str, file: Path, parameters: Mapping[str, str | int] | None = None
) -> LoadedDriver:
    """Load `file` as `module` and say what runs now.

    Raises NotHeld with the guest's own words when the kernel refuses it.
    """
    remote = f"/tmp/{file.name}"
    channel.put(file, remote)
    arguments = [f"{name}={value}" for name, value in (parameters or {}).items()]
    try:
        channel.run(["insmod", remote, *arguments], timeout=60)
    except CommandFailed as failed:
        tail = channel.run(["sh", "-c", "dmesg | tail -n 5"], timeout=20).text.splitlines()
        said = failed.result.stderr.decode(errors="replace").strip()
        raise NotHeld(f"{channel.name} refused {file.name}: {said}", lines=tail) from None
    now = loaded(channel, module)
    if now is None:
        raise NotHeld(f"{channel.name}: insmod of {file.name} succeeded, but {module} is not there")
    return now


def unload(channel: Channel, module: str) -> None:
    """Unload `module`; nothing to do when it is not loaded. A module in use raises NotHeld.

    A disk that was just detached holds its driver until its last reader has closed it, a
    moment after both ends are through: hence the patience.
    """
    for _ in range(_LET_GO):
        answer = channel.run(["rmmod", module], timeout=60, check=False)
        if answer.status == 0 or loaded(channel, module) is None:
            return
        time.sleep(0.1)
    said = answer.stderr.decode(errors="replace").strip()
    raise NotHeld(f"{channel.name} did not let go of {module}: {said}")


def swap(
    channel: Channel, module: str, file: Path, parameters: Mapping[str, str | int] | None = None
) -> LoadedDriver:
    """Unload `module` if it is there, then load `file` in its place."""
    unload(channel, module)
    return load(channel, module, file, parameters)
