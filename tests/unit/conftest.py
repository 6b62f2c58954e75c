"""What the unit tests share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_archive import Mirror, quietly

from emu.images import apt


@pytest.fixture
def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs as they are written, for tests of what is printed of them."""
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "1")


@pytest.fixture(scope="session")
def keys() -> Iterator[Path]:
    """A directory with the key of `mirror`, its keyring beside."""
    if not shutil.which("gpg"):
        pytest.skip("gpg is missing, nothing can sign the test's archive: apt-get install gnupg")
    home = Path(tempfile.mkdtemp())  # short: gpg-agent's socket is in it
    gpg = ("gpg", "--homedir", str(home), "--batch")
    try:
        quietly(*gpg, "--passphrase", "", "--quick-generate-key", "test", "ed25519")
        quietly(*gpg, "--export", "--output", str(home / "keyring.gpg"))
        yield home
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def mirror(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """An archive with `tool` and what that depends on."""
    monkeypatch.setattr(apt, "KEYRING", keys / "keyring.gpg")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    mirror = Mirror(tmp_path / "mirror", keys)
    mirror.add("tool", "1:2-3", Depends="lib (>= 1), helper | other, virtual", Recommends="doc")
    mirror.add("lib", Pre_Depends="deep")
    mirror.add("helper", Depends="heavy")
    mirror.add("heavy", Depends="deep")
    mirror.add("provider", Provides="virtual")
    for name in ("deep", "doc", "other"):
        mirror.add(name)
    mirror.publish()
    yield mirror
    mirror.stop()
