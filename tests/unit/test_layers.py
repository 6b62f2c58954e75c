"""The floor of the Xen block stack stands on the machine: it knows neither the lab nor the rig."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from emu import paths

PACKAGE = Path(paths.__file__).parent
ABOVE_XEN = {"rig", "lab", "series", "suite", "commands", "pytestplugin"}


def imported(file: Path) -> set[str]:
    """The subpackages of emu that a module imports, for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("emu.")}


@pytest.mark.parametrize("file", sorted((PACKAGE / "xen").glob("*.py")), ids=lambda file: file.stem)
def test_xen_imports_nothing_from_above(file: Path) -> None:
    assert not imported(file) & ABOVE_XEN
