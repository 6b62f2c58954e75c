"""docs/behaviours.md: what a block driver of Xen promises, and the tests that hold it.

A promise is a list item that ends with its tests in parentheses, each between backticks as
`file.py::function`: the base name of a file below tests/, and a test function in it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emu import paths

DRIVER_FOLDERS = ("negotiation", "migration", "grants", "adversary", "storage", "disks", "failures")
"""Those of tests/system/ whose tests are about the drivers."""

_ITEM = re.compile(r"^- (.+(?:\n {2}.+)*)", re.MULTILINE)
_ENDS = re.compile(r"(.*?[.!])\s+\(((?:`[^`]+`(?:,\s+)?)+)\)", re.DOTALL)
_NAME = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Promise:
    """A sentence about a driver, and the tests that hold it ("test_x.py::test_name")."""

    text: str
    tests: tuple[str, ...]


def document() -> Path:
    """The list of promises."""
    return paths.checkout() / "docs/behaviours.md"


def promises(text: str) -> list[Promise]:
    """Those of a document, in its order. One without tests has none."""
    found = []
    for item in _ITEM.findall(text):
        words = " ".join(item.split())
        parts = _ENDS.fullmatch(words)
        tests = tuple(_NAME.findall(parts[2])) if parts else ()
        found.append(Promise(parts[1] if parts else words, tests))
    return found


def functions_of(folder: Path) -> Iterator[str]:
    """The test functions in the files below a folder, as the document names them."""
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.name}::{node.name}"
