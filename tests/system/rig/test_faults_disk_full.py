"""A full disk while building, saving and running: an error that names path and room.

Each test runs `emu` on a small tmpfs of its own, in a mount namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from emu_command import Warm

from emu.errors import EXIT_RIG

UNSHARE = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    made = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True)
    return made.returncode == 0


pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not _can_mount(), reason="no mount namespace to be had here"),
]

# What `emu` leaves is copied out before the namespace ends; then the disk grows and `emu`
# runs again on what the failure left.
SMALL_DISK = """
set -u
size=$1 disk=$2 filled=$3 left=$4 again=$5
shift 5
mount -t tmpfs -o mode=700,size=$size tmpfs "$disk"
cp -a "$filled"/. "$disk"
"$@"
status=$?
(cd "$disk" && find . -type f -o -type s) > "$left"
if [ $again = yes ]; then
    mount -o remount,size=4g "$disk"
    echo "--- again" >&2
    "$@" || exit 99
fi
exit $status
"""


class SmallDisk:
    """Runs `emu run` on a disk of a few MiB."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.disk = warm.folder / "disk"
        self.disk.mkdir()

    def run(
        self, mib: int, *arguments: str, without: tuple[str, ...] = (), again: bool = False
    ) -> tuple[str, set[Path]]:
        """The error of a run that finds the disk full, and the files it left."""
        filled = self.warm.home(without=without)
        left = self.warm.folder / "left"
        wrapper = [*UNSHARE, "sh", "-c", SMALL_DISK, "sh", f"{mib}m", str(self.disk), str(filled)]
        wrapper += [str(left), "yes" if again else "no"]
        command = self.warm.emu(self.disk, "run", *arguments, wrapper=wrapper)
        ended = command.wait(200)
        first, _, second = command.stderr.partition("--- again")
        assert ended == EXIT_RIG, f"status {ended}\n{first}\n{second}"
        assert "Traceback" not in first, first
        command.assert_nothing_runs()
        return first[first.index("emu: ") :], {Path(line) for line in left.read_text().splitlines()}


@pytest.fixture
def small(warm: Warm) -> SmallDisk:
    return SmallDisk(warm)


def remains(left: set[Path]) -> set[Path]:
    """Files that are none of what a run may leave: locks, logs, linked entries' fingerprints."""
    fine = {".stat", ".log", ".1"}
    return {
        path
        for path in left
        if path.suffix not in fine and "locks" not in path.parts and path.name != "lock"
    }


def test_while_the_guests_are_built(small: SmallDisk) -> None:
    output, left = small.run(40, "--data", "1", without=("guests",), again=True)
    assert "no room on the disk: building guests had written" in output
    assert f"{small.disk}/emu-xen-block has" in output
    assert "MiB left" in output
    assert "emu cache prune" in output
    assert not remains(left)


@pytest.mark.long
def test_while_the_checkpoint_is_saved(small: SmallDisk) -> None:
    output, left = small.run(100, "--data", "1", without=("checkpoint",))
    assert "no room" in output
    assert str(small.disk) in output
    assert "MiB left" in output
    assert not remains(left)


def test_while_the_guests_write(small: SmallDisk) -> None:
    output, left = small.run(16, "--data", "64")
    assert "no room for what the guest writes in" in output
    assert str(small.disk) in output
    assert "MiB left" in output
    assert not remains(left)
