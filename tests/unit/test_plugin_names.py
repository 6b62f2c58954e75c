"""The plugin's options and fixtures beside another plugin's of the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_patches import change

from emu import paths

OTHER = paths.checkout() / "tests/system/rig/plugin/other_plugin.py"
TESTS = """
def test_other_plugin_keeps_its_names(host, pytestconfig):
    assert host == "theirs"
    assert pytestconfig.getoption("--kernel") == "5.10"
    assert pytestconfig.getoption("--emu-kernel") == "debian-6.12"
    assert pytestconfig.getoption("--emu-clock") == "icount"
"""
SHORT_CONFTEST = """
import pytest
from emu.pytestplugin.short_names import *

for name in ("domu", "host", "ledger", "lun", "stack", "two_hosts"):
    globals()[name + "_"] = pytest.fixture(name="emu_" + name)(lambda name=name: "emu_" + name)
"""
SHORT = """
def test_short_names(domu, host, ledger, lun, stack, two_hosts, pytestconfig):
    assert (domu, host, ledger) == ("emu_domu", "emu_host", "emu_ledger")
    assert (lun, stack, two_hosts) == ("emu_lun", "emu_stack", "emu_two_hosts")
    assert pytestconfig.getoption("--emu-kernel") == pytestconfig.getoption("--kernel") == "lab"
    assert pytestconfig.getoption("--emu-driver-patches") == ["one", "two"]
"""


def run(folder: Path, *options: str) -> str:
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("loaded_by", ["option", "environment", "conftest"])
def test_other_plugin_keeps_its_names(
    tmp_path: Path, loaded_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is loaded before ours (-p) or after (PYTEST_PLUGINS, a conftest)."""
    module = "conftest" if loaded_by == "conftest" else "other_plugin"
    (tmp_path / f"{module}.py").write_text(OTHER.read_text())
    (tmp_path / "test_names.py").write_text(TESTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if loaded_by == "environment":
        monkeypatch.setenv("PYTEST_PLUGINS", module)
    options = ["-p", module] if loaded_by == "option" else []
    output = run(
        tmp_path, *options, "--kernel=5.10", "--emu-kernel", "debian-6.12", "--clock", "icount"
    )
    assert "1 passed" in output, output


def test_short_names(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(SHORT_CONFTEST)
    (tmp_path / "test_names.py").write_text(SHORT)
    for name in ("one", "two"):
        (tmp_path / name).write_text(change())
    patches = ["--driver-patches", "one", "--emu-driver-patches=two"]
    output = run(tmp_path, "test_names.py", "--kernel", "lab", *patches)
    assert "1 passed" in output, output


def test_bad_drivers_end_the_session_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "test_names.py").write_text("def test_one(): pass\n")
    (tmp_path / "words").write_text("no patch\n")
    (tmp_path / "a:b").write_text(change())
    for options, message in {
        ("--driver-patches", "words"): "ERROR: words holds no patch",
        ("--driver-patches", "gone"): "ERROR: there is no gone",
        ("--driver-patches", "a:b"): f"ERROR: {tmp_path}/a:b has a ':' in its name",
        ("--tree-drivers", "."): f"ERROR: {tmp_path} is no kernel tree",
        ("--on", "stock"): "ERROR: drivers on stock without patches",
    }.items():
        output = run(tmp_path, "test_names.py", *options)
        assert message in output
        assert "INTERNALERROR" not in output


def test_unknown_xen_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n")
    output = run(tmp_path, "--xen", "4.21")
    assert "ERROR: there is no Xen 4.21: Debian's suites have 4.14 (bullseye), 4.17" in output
    assert "passed" not in output


MARKED = """
import pytest
from emu.pytestplugin.short_names import *

@pytest.fixture
def mine(lun):
    return lun

def test_of_a_disk(mine): ...
def test_of_a_domu(emu_domu): ...
def test_of_two(two_hosts): ...
def test_of_numbers(stack): ...
@pytest.mark.drivers
def test_that_says_so(stack): ...
@pytest.mark.rig
def test_of_consoles(host): ...
"""


def test_marker_selects_the_tests_that_exercise_the_drivers(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    output = run(tmp_path, "--strict-markers", "--collect-only", "-q", "-m", "drivers")
    chosen = [line.partition("::")[2] for line in output.splitlines() if "::" in line]
    assert chosen == ["test_of_a_disk", "test_of_a_domu", "test_of_two", "test_that_says_so"]
    assert "@pytest.mark.drivers: exercises the block drivers" in run(tmp_path, "--markers")
