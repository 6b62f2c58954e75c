"""What no machine could run is refused before anything is fetched, built or started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emu import cli
from emu.deadline import scale
from emu.errors import EXIT_INPUT

pytest_plugins = ["pytester"]

KEPT = {"locks", "store", "tmp", "runs"}
"""What is made in an empty cache before anything is fetched."""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, and no archive to fetch from."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("EMU_DEBIAN_MIRROR", "http://127.0.0.1:9/nothing")
    return tmp_path / "emu-xen-block"


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} if cache.exists() else set()


@pytest.mark.parametrize("option", ["--kernel", "--domu-kernel"])
@pytest.mark.parametrize("qemu", ["system", "patched", "/nowhere/qemu"])
@pytest.mark.parametrize("verb", ["run", "shell"])
def test_unknown_kernel_is_refused_at_once_with_an_empty_cache(
    verb: str,
    option: str,
    qemu: str,
    empty_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = time.monotonic()
    assert cli.main([verb, option, "nonsense", "--qemu", qemu]) == EXIT_INPUT
    assert time.monotonic() - began < scale()
    printed = capsys.readouterr().err
    assert "there is no kernel 'nonsense-6.1'" in printed
    assert "there are: debian-6.1, lab-6.1" in printed
    assert kept(empty_cache) <= KEPT, "something was built"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--domu-memory", "16"], "a domU of 16 MiB can't boot Linux"),
        (["--domu-memory", "100000000"], "takes 100001280 MiB with dom0 and Xen"),
        (["--dom0-memory", "16"], "a dom0 of 16 MiB can't boot"),
        (["--dom0-vcpus", "9"], "dom0 has 1 to 8 vCPUs, not 9"),
        (["--xen-options", "a\nb"], "no list of options"),
        (["--xen", "3.0"], "there is no Xen 3.0"),
        (["--disk", "hde"], "'hde' is no disk name"),
        (["--ring-pages", "3"], "a ring has 1, 2, 4, … pages, not 3"),
        (["--front", "/nonexistent.ko"], "/nonexistent.ko"),
        (["--tree", "/nonexistent"], "/nonexistent"),
        (["--driver-patches", "/nonexistent.mbox"], "/nonexistent.mbox"),
    ],
    ids=lambda value: " ".join(value).replace("\n", " ") if isinstance(value, list) else "",
)
def test_what_can_not_be_is_refused_at_once_with_an_empty_cache(
    options: list[str], said: str, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert cli.main(["run", *options]) == EXIT_INPUT
    assert time.monotonic() - began < scale()
    assert said in capsys.readouterr().err
    assert kept(empty_cache) <= KEPT, "something was built"


MARKED = """
import pytest

@pytest.mark.stack(kernel="plan9")
def test_kernel(emu_host): pass

@pytest.mark.stack(domu_memory=100000000)
def test_memory(emu_host): pass

@pytest.mark.stack(dom0_vcpus=9)
def test_dom0(emu_host): pass

@pytest.mark.stack(xen="3.0")
def test_xen(emu_two_hosts): pass

@pytest.mark.stack(sails=3)
def test_word(emu_host): pass

def test_without_a_stack(): pass
"""
REASONS = (
    "there is no kernel 'plan9-6.1'",
    "takes 100001280 MiB with dom0 and Xen",
    "dom0 has 1 to 8 vCPUs, not 9",
    "there is no Xen 3.0",
    "a stack has no sails",
)


def test_marked_tests_are_refused_at_once_with_an_empty_cache(
    pytester: pytest.Pytester, empty_cache: Path
) -> None:
    pytester.makepyfile(MARKED)
    began = time.monotonic()
    result = pytester.runpytest("-p", "no:cacheprovider", "-p", "no:xdist")
    assert time.monotonic() - began < 5 * scale()
    result.assert_outcomes(errors=len(REASONS), passed=1)
    text = result.stdout.str()
    assert [reason for reason in REASONS if reason not in text] == []
    assert kept(empty_cache) <= KEPT, "something was built"
