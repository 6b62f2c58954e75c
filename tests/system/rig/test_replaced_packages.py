"""A run on a package in place of the locked one: it is what runs, and every report says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from emu_command import Warm

from emu.images import replaced
from emu.images.cache import Cache
from emu.images.manifest import sha256_of
from emu.images.packages import Lock, Package, lock_digest

# It makes guest images, and boots once from them: two minutes.
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

VERSION = "1:99"
TEST = """
def test_it(emu_domu):
    assert emu_domu.channel.run(["cat", "/usr/lib/replaced"], timeout=20).text == "replaced"
"""


@pytest.fixture
def home(warm: Warm, tmp_path: Path) -> Path:
    """A cache in which another busybox than the locked one was chosen, in both guests."""
    home = warm.home(without=("store",))
    cache, lock = Cache(home / "emu-xen-block"), Lock.load()
    debs = cache.store("debs")
    for deb in (warm.source / "store/debs").iterdir():
        (debs / deb.name).symlink_to(deb)
    (locked,) = (p for p in lock.packages("domu") if p.name == "busybox-static")
    other = repacked(debs / locked.file_name, tmp_path / "tree", locked)
    (tmp_path / "new.deb").rename(debs / other.file_name)
    replaced.remember(
        cache,
        {
            lock_digest(lock, [name]): [other if p == locked else p for p in lock.packages(name)]
            for name in ("dom0", "domu")
        },
    )
    return home


def repacked(deb: Path, tree: Path, locked: Package) -> Package:
    """Unpack a package, add a file, give it another version, and pack it beside the tree."""
    run("dpkg-deb", "--raw-extract", str(deb), str(tree))
    (tree / "usr/lib").mkdir(parents=True, exist_ok=True)
    (tree / "usr/lib/replaced").write_text("replaced")
    control = tree / "DEBIAN/control"
    text = control.read_text().replace(f"Version: {locked.version}", f"Version: {VERSION}")
    control.write_text(text)
    made = tree.with_name("new.deb")
    run("dpkg-deb", "--root-owner-group", "--build", str(tree), str(made))
    return replace(
        locked, version=VERSION, sha256=sha256_of(made), size=made.stat().st_size, sets=()
    )


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def test_run_on_a_replaced_package(warm: Warm, home: Path, tmp_path: Path) -> None:
    nowhere = {"EMU_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}
    (locked,) = (p for p in Lock.load().packages("domu") if p.name == "busybox-static")
    change = f"busybox-static {VERSION} instead of busybox-static {locked.version}"
    first = warm.run(home, "--json", environ=nowhere).succeed(300)
    assert first.stderr.count(f"the archive has replaced locked packages: taking {change} (") == 1
    used = {p["name"]: p for p in json.loads(first.stdout)["packages"]}
    assert used["busybox-static"]["version"] == VERSION
    assert used["busybox-static"]["instead_of"] == f"busybox-static {locked.version}"
    assert used["tcmu-runner"]["instead_of"] is None
    again = warm.run(home, environ=nowhere).succeed()
    assert f"\npackage {change}\n" in again.stdout
    assert again.stderr.count(change) == 1
    assert "started from a checkpoint" in again.stdout
    # The locked one is in the cache, too, and all that was made of it.
    insisting = warm.run(home, "--locked", environ=nowhere).succeed()
    assert "busybox" not in insisting.stdout + insisting.stderr

    (tmp_path / "test_it.py").write_text(TEST)
    report = tmp_path / "junit.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=tmp_path,
        env={**os.environ, **nowhere, "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert f"1 test ran with packages in place of locked ones: {change}" in done.stdout
    (case,) = ElementTree.parse(report).iter("testcase")
    found = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert found["replaced-packages"] == change
