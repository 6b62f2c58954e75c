"""`make test-hosts`: what it refuses, before it makes anything."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from emu import paths


def hosts(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    search = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, paths.checkout() / ".ci/hosts.py", *words],
        env={**os.environ, "PATH": search},
        capture_output=True,
        text=True,
    )


def test_unknown_suite_is_refused() -> None:
    done = hosts("woody")
    assert done.returncode == 2
    assert "'woody' is none of bookworm, trixie" in done.stderr


def test_machine_without_namespaces_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    unshare.chmod(0o755)
    done = hosts("trixie", path=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("emu: this user can make no namespaces")
    assert "unshare failed: Operation not permitted" in done.stderr
    assert "run it as root" in done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["_UNPACK", "_ENTER"])
def test_nothing_is_mounted_outside_of_a_namespace(name: str) -> None:
    """No program is found by the script here: should it go on, it comes to nothing."""
    module = runpy.run_path(str(paths.checkout() / ".ci/hosts.py"))
    done = subprocess.run(
        ["/bin/sh", "-c", module[name], "sh", "/nowhere", "/nowhere", "/nowhere"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (125, "not in namespaces of its own\n")
