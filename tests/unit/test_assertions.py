"""The tests of the drivers say what a driver did wrong, and measure time by deadlines.

Whoever sees such a test fail does not know it, nor the flaw: a bare `assert 0 == 16` tells nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from emu import paths

TESTS = paths.checkout() / "tests"
SYSTEM = TESTS / "system"
OTHERS = ("debug", "qemu", "rig")
"""Folders of tests that are not about what a driver does (or are, on kernels that say it)."""
SHARED = ("driver_checks.py", "migration_checks.py")


def of_drivers() -> Iterator[Path]:
    """The files whose assertions are about drivers."""
    for path in SYSTEM.rglob("*.py"):
        if path.parent != SYSTEM and path.relative_to(SYSTEM).parts[0] not in OTHERS:
            yield path
    yield from (TESTS / "support" / name for name in SHARED)


def bare(source: str) -> Iterator[int]:
    """The lines of assertions without a message in words.

    Words are a text with a blank in it, or the name of a constant; a value alone is none. A list
    of what is `wrong`, which a test has collected, has them itself.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and not (node.msg and has_words(node.test, node.msg)):
            yield node.lineno


def has_words(test: ast.expr, message: ast.expr) -> bool:
    if isinstance(message, ast.Name):
        return message.id.isupper()
    return ast.unparse(test) == "not wrong" or any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value
        for part in ast.walk(message)
    )


def test_assertions_about_drivers_name_the_flaw() -> None:
    found = {str(path.relative_to(TESTS)): list(bare(path.read_text())) for path in of_drivers()}
    wrong = [f"{name}:{line}" for name, lines in sorted(found.items()) for line in lines]
    assert not wrong, "assertions without a sentence that names the flaw: " + ", ".join(wrong)


def test_bare_assertions_are_found() -> None:
    source = """
assert a == b
assert a, domu.errors()
assert a, name
assert a, MIXED_UP
assert a, f"{a} pages are mapped"
assert not wrong, "\\n".join(wrong)
assert not wrong, told(wrong)
assert not faults(a), told(a)
assert not wrong
"""
    assert list(bare(source)) == [2, 3, 4, 9, 10]


def test_times_of_system_tests_are_deadlines() -> None:
    """Which honour EMU_TIMEOUT_SCALE, and say what was awaited for how long."""
    wrong = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in SYSTEM.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == "monotonic")
        or (isinstance(node, ast.alias) and node.name == "monotonic")
    ]
    assert not wrong, "time.monotonic() in place of an emu.deadline.Deadline: " + ", ".join(wrong)
