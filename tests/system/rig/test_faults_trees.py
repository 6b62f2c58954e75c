"""Trees and configurations that no kernel can be built of are refused before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from emu_command import Warm
from kernel_trees import small_tree

from emu.errors import EXIT_INPUT, EXIT_USAGE

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "linux")


def refusal(warm: Warm, *arguments: str, status: int = EXIT_INPUT) -> str:
    """The error of an `emu run` that is refused before it copies, builds or boots anything."""
    home = warm.home()
    command = warm.run(home, *arguments)
    output = command.fail(status, timeout=20)
    assert "building" not in command.stderr
    assert not (home / "emu-xen-block/runs").exists(), "a machine was started"
    assert not list((home / "emu-xen-block").glob("store/tree-[0-9a-f]*"))
    return output


def test_what_is_no_tree(warm: Warm, tree: Path) -> None:
    assert f"there is no directory {tree}/nowhere" in refusal(warm, "--tree", f"{tree}/nowhere")
    output = refusal(warm, "--kernel", "debian", "--domu-tree", str(tree / "kernel"))
    assert f"{tree}/kernel is no kernel tree" in output
    assert f"its top is {tree}" in output


def test_tree_without_xens_options(warm: Warm, tree: Path) -> None:
    (tree / "arch/x86/xen/Kconfig").write_text("config XEN\n\tbool\n")
    output = refusal(warm, "--tree", str(tree))
    assert f"{tree} (Linux 7.3.0-rc5) has no CONFIG_XEN_PV in arch/x86/xen/Kconfig" in output


def test_configuration_that_is_none(warm: Warm, tree: Path) -> None:
    given = tree / "mine"
    output = refusal(warm, "--tree", str(tree), "--config", str(given))
    assert f"there is no configuration {given}" in output
    output = refusal(warm, "--tree", str(tree), "--config", str(tree / "Makefile"))
    assert f"{tree}/Makefile is no kernel configuration" in output
    given.write_text("CONFIG_KASAN=y\n")
    output = refusal(warm, "--config", str(given))
    assert "a configuration is for a kernel of a tree" in output


def test_tree_and_name(warm: Warm, tree: Path) -> None:
    options = ("--tree", str(tree), "--kernel", "lab")
    assert "not allowed with" in refusal(warm, *options, status=EXIT_USAGE)
    options = ("--domu-tree", str(tree), "--domu-kernel", "lab")
    assert "not allowed with" in refusal(warm, *options, status=EXIT_USAGE)
