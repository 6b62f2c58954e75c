"""The plugin and kernels that will not do: refused before anything is fetched or booted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_names import a_kernel


def run_pytest(folder: Path, kernel: str) -> str:
    """What pytest prints of a test that needs a domU with patched drivers, on an empty cache."""
    (folder / "pytest.ini").touch()
    (folder / "test_one.py").write_text("def test_one(emu_domu):\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--emu-kernel={kernel}"]
    environ = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode
    assert not (folder / "cache/emu-xen-block/store/apt").exists()
    return done.stdout + done.stderr


@pytest.mark.parametrize("headers", [True, False])
def test_kernel_without_patched_drivers_is_refused_in_set_up(headers: bool, tmp_path: Path) -> None:
    kernel = a_kernel(headers=headers, series=False)
    assert f"{kernel}" in (printed := run_pytest(tmp_path, kernel))
    assert "InputError" in printed


def test_kernel_that_is_none_for_dom0_ends_the_session(tmp_path: Path) -> None:
    kernel = a_kernel("cloud", headers=True)
    printed = run_pytest(tmp_path, kernel)
    assert f"ERROR: --kernel: {kernel} can't be dom0's" in printed
    assert "ERROR: --kernel: there is no kernel 'debian-6.11'" in run_pytest(
        tmp_path, "debian-6.11"
    )
