"""Packages in place of locked ones: what commands and the plugin do with them, and say of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from emu import cli
from emu.errors import EXIT_INPUT, InputError
from emu.images import replaced, xens
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.guests import package_sets
from emu.images.packages import Lock, lock_digest
from emu.images.replaced import PackagesReplaced
from emu.lab import doctor, store
from emu.progress import Progress

pytest_plugins = ["pytester"]

HYPERVISOR = xens.find(xens.DEFAULT).hypervisor
SETS = package_sets(xens.find(xens.DEFAULT))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The cache that commands use, in which another Xen is remembered in place of the locked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(replaced.INSIST, "")
    cache, lock = Cache(), Lock.load()
    (xen,) = lock.packages(HYPERVISOR)
    other = replace(xen, version="4.17.99-1", sha256="0" * 64)
    replaced.remember(cache, {lock_digest(lock, [HYPERVISOR]): [other]})
    return cache


def test_locked_reaches_builds_and_what_they_start(
    own: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, str]] = []

    def build(kernel: str, context: BuildContext) -> None:
        seen.append((context.insist, os.environ[replaced.INSIST]))
        raise InputError("enough")

    monkeypatch.setattr(store, "build", build)
    assert cli.main(["images", "build"]) == EXIT_INPUT
    assert cli.main(["images", "build", "--locked"]) == EXIT_INPUT
    assert seen == [(False, ""), (True, "1")]


def test_command_begins_again_with_what_was_replaced(
    own: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[BuildContext] = []

    def build(kernel: str, context: BuildContext) -> None:
        tried.append(context)
        assert context.lock.packages(HYPERVISOR)
        if len(tried) == 1:
            raise PackagesReplaced("something")
        raise InputError("enough")

    monkeypatch.setattr(store, "build", build)
    assert cli.main(["images", "build"]) == EXIT_INPUT
    printed = capsys.readouterr().err
    assert len(tried) == 2
    assert "something" not in printed
    assert printed.count("the archive has replaced locked packages: taking xen-hypervisor-") == 1


def test_list_of_images_marks_what_is_not_locked(
    own: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = replaced.lock_in_use(own)
    inputs = {"packages": lock_digest(lock, SETS), "kernel": "0" * 32}
    own.entry("guests", inputs, lambda made: (made / "xen").touch(), Progress())
    (xen,) = Lock.load().packages(HYPERVISOR)
    change = f"{xen.name} 4.17.99-1 instead of {xen.name} {xen.version}"
    assert cli.main(["images"]) == 0
    assert f"and {len(lock.packages(*SETS)) - 1} more; {change}" in (capsys.readouterr().out)
    assert cli.main(["images", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["instead_of_locked"] == [change]
    assert f"{xen.name} 4.17.99-1 {'0' * 64}" in listed["packages"]
    assert any(change in check.text for check in doctor._locked(own))


def test_plugin_passes_locked_on(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import os

        def test_it():
            assert os.environ["{replaced.INSIST}"] == "1"
        """
    )
    for option in ("--locked", "--emu-locked"):
        pytester.runpytest_subprocess(option).assert_outcomes(passed=1)
        pytester.runpytest_subprocess(option, "-n", "1").assert_outcomes(passed=1)
    file = pytester.path / "wishes.json"
    pytester.runpytest_subprocess("--collect-only", f"--emu-wishes={file}", "--locked")
    assert json.loads(file.read_text())["environ"][replaced.INSIST] == "1"


def test_plugin_says_what_tests_ran_with(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(number, record_property):
            record_property("replaced-packages", "lib 2 instead of lib 1")
        """
    )
    output = pytester.runpytest_subprocess("-n", "1").stdout.str()
    assert "2 tests ran with packages in place of locked ones: lib 2 instead of lib 1" in output
