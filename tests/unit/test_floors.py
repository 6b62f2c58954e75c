"""The layout that README.md draws: a room imports only rooms below it, and nothing in a circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

from emu import paths

EMU = paths.checkout() / "emu"
FLOORS = (
    {"__main__"},
    {"cli"},
    {"commands", "pytestplugin"},
    {"lab", "screen"},
    {"suite"},
    {"series", "rig"},
    {"stack"},
    {"xen"},
    {"emulator"},
    {"machine"},
    {"channel"},
    {"images"},
    {"runprogram", "reactor"},
    {"deadline", "errors", "hosttools", "paths", "progress"},
)
"""From the top. Rooms of one floor do not import each other, but for the bottom floor's."""
CIRCLES = {
    frozenset({"emu.rig.host", "emu.rig.domu"}),
    frozenset({"emu.rig.host", "emu.rig.disks"}),
    frozenset({"emu.xen.host", "emu.xen.domain"}),
}
"""Pairs that name each other's types: a host has domUs, and a domU its host."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(EMU.rglob("*.py")):
        name = ".".join(("emu", *path.relative_to(EMU).with_suffix("").parts))
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "emu":
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("emu"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def height(module: str) -> int:
    return next(n for n, floor in enumerate(reversed(FLOORS)) if room(module) in floor)


def imports() -> dict[str, set[str]]:
    trees = dict(modules())
    known = set(trees)
    return {name: set(imported(tree, known)) - {name} for name, tree in trees.items()}


def test_room_imports_only_rooms_below() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        if name != "emu"
        for other in sorted(others - {"emu"})
        if room(name) != room(other) and height(other) >= height(name) > 0
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor() -> None:
    rooms = {room(name) for name in imports()} - {""}
    assert rooms == set().union(*FLOORS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A package's __init__ hands on what its modules have.
    packages = {name for name in imports() if (EMU / Path(*name.split(".")[1:])).is_dir()}
    graph = {
        name: {other for other in others - packages if frozenset({name, other}) not in CIRCLES}
        for name, others in imports().items()
        if name not in packages
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle
