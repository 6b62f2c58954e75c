"""A kernel that does not exist is refused before anything is fetched, built or started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emu import cli
from emu.deadline import scale
from emu.errors import EXIT_INPUT


@pytest.mark.parametrize("option", ["--kernel", "--domu-kernel"])
@pytest.mark.parametrize("qemu", ["system", "patched", "/nowhere/qemu"])
@pytest.mark.parametrize("verb", ["run", "shell"])
def test_unknown_kernel_is_refused_at_once_with_an_empty_cache(
    verb: str,
    option: str,
    qemu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("EMU_DEBIAN_MIRROR", "http://127.0.0.1:9/nothing")
    began = time.monotonic()
    assert cli.main([verb, option, "nonsense", "--qemu", qemu]) == EXIT_INPUT
    assert time.monotonic() - began < scale()
    printed = capsys.readouterr().err
    assert "there is no kernel 'nonsense-6.1'" in printed
    assert "there are: debian-6.1, lab-6.1" in printed
    kept = {path.name for path in (tmp_path / "emu-xen-block").iterdir()}
    assert kept <= {"locks", "store", "tmp", "runs"}, "something was built"
