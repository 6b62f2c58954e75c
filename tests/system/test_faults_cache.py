"""Cache entries that were truncated or altered are thrown away and made again, with a line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from emu_command import EmuCommand, Warm, own_copy

from emu.images.agent import build as build_programs
from emu.images.cache import Cache
from emu.lab.run import driver_for
from emu.lab.stack import Inputs
from emu.progress import Progress

pytestmark = pytest.mark.timeout(180)


def flip(path: Path) -> None:
    """Change a byte in the middle; size and time stay as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    """Cut the file in half."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def entries(inputs: Inputs, everything: Cache) -> dict[str, Path]:
    """The entries that `emu run` uses, by kind."""
    driver = driver_for("front", "patched", inputs, everything, Progress())
    checkpoint = everything.find("checkpoint", inputs.checkpoint_key())
    assert checkpoint is not None
    return {
        "guest-programs": build_programs(everything, Progress()).agent.parent,
        "guests": inputs.guests.root,
        "drivers": driver.path.parent,
        "checkpoint": checkpoint,
    }


@pytest.mark.parametrize(
    ("kind", "name", "damage"),
    [
        ("checkpoint", "machine/ram", truncate),
        ("guests", "dom0.squashfs", flip),
        ("drivers", "xen-blkfront.ko", truncate),
        ("drivers", "manifest.json", truncate),
        ("guest-programs", "emu-agent", flip),
    ],
)
def test_a_damaged_entry_is_made_again(
    warm: Warm,
    entries: dict[str, Path],
    kind: str,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    home = warm.home()
    entry = own_copy(home / "emu-xen-block" / kind / entries[kind].name)
    inode = entry.stat().st_ino
    damage(entry / name)
    command = warm.run(home).succeed()
    told = [line for line in command.stderr.splitlines() if line.startswith("cache: ")]
    fault = "has an unreadable manifest" if name == "manifest.json" else f"was altered ({name})"
    key = entry.name[:8]
    assert told == [f"cache: {kind} {key} {fault}: thrown away, building again"]
    assert entry.stat().st_ino != inode
    assert Cache(home / "emu-xen-block").root.exists()
    silent = warm.run(home).succeed()
    assert "cache: " not in silent.stderr


def test_a_checkpoint_that_does_not_load_is_made_again(
    warm: Warm, entries: dict[str, Path]
) -> None:
    """Its files are what the manifest says, and still QEMU refuses them."""
    home = warm.home()
    entry = own_copy(home / "emu-xen-block/checkpoint" / entries["checkpoint"].name)
    state = entry / "machine/state"
    state.write_bytes(state.read_bytes()[:5000])
    reseal(entry, "machine/state")
    command = warm.run(home).succeed()
    told = [line for line in command.stderr.splitlines() if "does not load" in line]
    assert len(told) == 1
    assert told[0].endswith("making it again")


def reseal(entry: Path, name: str) -> None:
    """Put a changed file into the manifest, as if it had been built so."""
    import hashlib
    import json

    manifest = json.loads((entry / "manifest.json").read_text())
    data = (entry / name).read_bytes()
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    manifest["files"][name]["size"] = len(data)
    (entry / "manifest.json").write_text(json.dumps(manifest))


def test_a_damaged_package_is_not_used(warm: Warm, everything: Cache) -> None:
    """It is fetched again; where there is no network, that is what the error is about."""
    home = warm.home(without=("guests", "store"))
    debs = home / "emu-xen-block/store/debs"
    debs.mkdir(parents=True)
    for deb in (everything.root / "store/debs").iterdir():
        (debs / deb.name).symlink_to(deb)
    victim = next(iter(debs.glob("xenstore-utils_*")))
    good = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(good)
    flip(victim)
    nobody = {"EMU_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}
    command = warm.run(home, environ=nobody)
    said = command.fail(125)
    assert f"cache: {victim.name} is not what the lock says: fetching again" in command.stderr
    assert "is the network up?" in said
    assert not victim.exists()


