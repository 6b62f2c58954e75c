"""Cache entries that were truncated or altered are thrown away and made again, with a line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from emu_command import Warm, assert_clean, own_copy

from emu.images import xens
from emu.images.cache import Cache
from emu.images.packages import Lock

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


@pytest.mark.long
def test_damaged_entries_are_rebuilt(warm: Warm, entries: dict[str, Path]) -> None:
    """Each is reported once, in one line; what was made instead is whole."""
    home = warm.home()
    damages: list[tuple[str, str, Callable[[Path], None], str]] = [
        ("guest-programs", "manifest.json", truncate, "has an unreadable manifest"),
        ("guests", "dom0.squashfs", flip, "was altered (dom0.squashfs)"),
        ("driver-source", "manifest.json", Path.unlink, "has no manifest"),
        ("drivers", "xen-blkfront.ko", truncate, "was altered (xen-blkfront.ko)"),
        ("checkpoint", "machine/state", Path.unlink, "lacks machine/state"),
    ]
    expected = []
    for kind, name, damage, fault in damages:
        entry = own_copy(home / "emu-xen-block" / kind / entries[kind].name)
        damage(entry / name)
        key = entry.name[:8]
        expected.append(f"cache: {kind} {key} {fault}: thrown away, building again")
    command = warm.run(home).succeed()
    notes = [line for line in command.stderr.splitlines() if line.startswith("cache: ")]
    assert sorted(notes) == sorted(expected)
    assert_clean(home)


def test_truncated_ram_is_not_loaded(warm: Warm, entries: dict[str, Path]) -> None:
    """It would be zeros to the guest: the cache must not hand it out."""
    home = warm.home()
    entry = own_copy(home / "emu-xen-block/checkpoint" / entries["checkpoint"].name)
    wanted = json.loads((entry / "manifest.json").read_text())["inputs"]
    truncate(entry / "machine/ram")
    assert Cache(home / "emu-xen-block").find("checkpoint", wanted) is None


@pytest.mark.long
def test_checkpoint_that_does_not_load_is_made_again(warm: Warm, entries: dict[str, Path]) -> None:
    """Its files match the manifest, and still QEMU refuses them."""
    home = warm.home()
    entry = own_copy(home / "emu-xen-block/checkpoint" / entries["checkpoint"].name)
    state = entry / "machine/state"
    state.write_bytes(state.read_bytes()[:5000])
    reseal(entry, "machine/state")
    command = warm.run(home).succeed()
    notes = [line for line in command.stderr.splitlines() if "does not load" in line]
    assert len(notes) == 1
    assert notes[0].endswith("making it again")


def reseal(entry: Path, name: str) -> None:
    """Put a changed file into the manifest, as if it had been built so."""
    manifest = json.loads((entry / "manifest.json").read_text())
    data = (entry / name).read_bytes()
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    manifest["files"][name]["size"] = len(data)
    (entry / "manifest.json").write_text(json.dumps(manifest))


def test_damaged_package_is_not_used(warm: Warm, everything: Cache) -> None:
    """It is fetched again; where there is no network, that is what the error is about."""
    home = warm.home(without=("guests", "store"))
    debs = home / "emu-xen-block/store/debs"
    debs.mkdir(parents=True)
    for deb in (everything.root / "store/debs").iterdir():
        (debs / deb.name).symlink_to(deb)
    dom0 = Lock.load().packages(xens.find(xens.DEFAULT).dom0)
    victim = debs / next(one.file_name for one in dom0 if one.name == "xenstore-utils")
    good = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(good)
    flip(victim)
    environ = {"EMU_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}
    command = warm.run(home, environ=environ)
    output = command.fail(125)
    assert f"cache: {victim.name} does not match the lock: fetching again" in command.stderr
    assert "is the network up?" in output
    assert not victim.exists()
