"""Odd places and small rights: spaces in every path, a user who is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from emu_command import Warm, assert_clean, own_copy

from emu import paths

pytestmark = pytest.mark.timeout(240)

NOBODY = 65534


def checkout_at(place: Path) -> Path:
    """A copy of what `emu` runs from."""
    for name in ("emu", "guest-images", "qemu-patches"):
        source, leave = paths.checkout() / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, place / name, ignore=leave, symlinks=True)
    return place


@pytest.mark.long
def test_paths_may_have_spaces(warm: Warm, tmp_path: Path) -> None:
    """Everything is built and saved there, but for the packages and the kernel."""
    checkout = checkout_at(tmp_path / "a check out, ours")
    built = ("guest-programs", "guests", "driver-source", "drivers", "checkpoint")
    home = warm.home("the cache's own place", without=built)
    command = warm.run(home, checkout=checkout).succeed(220)
    for stage in ("compiling emu-agent", "building the guest images", "building the drivers"):
        assert stage in command.stderr
    for kind in built:
        assert len(list((home / "emu-xen-block" / kind).glob("*.stat"))) == 1
    assert_clean(home)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can reach, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="emu, nobody's ") as folder:
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_user_without_root(warm: Warm, entries: dict[str, Path], place: Path) -> None:
    """nobody, with a home of its own: no group, no capability, no way to gain one."""
    become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    become += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]
    if subprocess.run([*become, sys.executable, "-c", "import rich"]).returncode:
        pytest.skip(f"{sys.executable} is not for everybody here")
    checkout = checkout_at(place / "checkout")
    home = place / "cache"
    for entry in entries.values():
        folder = home / "emu-xen-block" / entry.parent.name
        folder.mkdir(parents=True)
        (folder / entry.name).symlink_to(entry)
        own_copy(folder / entry.name)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(place)], check=True)
    command = warm.run(home, wrapper=become, checkout=checkout, environ={"HOME": str(place)})
    command.succeed()
    assert "booting" not in command.stderr
    runs = list((home / "emu-xen-block/runs").iterdir())
    assert runs
    assert {path.stat().st_uid for path in runs} == {NOBODY}
    assert_clean(home)
