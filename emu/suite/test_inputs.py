"""What the outcome of a test depends on, as digests of files: outcomes are kept under these.

Of what tests share, only that counts which a test's file uses: the modules it imports (and those
that these import), and the other files (a program's source, a patch) that one of these names.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from emu import paths
from emu.images.cache import Cache
from emu.images.replaced import lock_in_use

_NOT_RUN = {
    "mutants.py", "passes.py", "preparing.py", "screen.py", "test_inputs.py", "testruns.py",
}  # fmt: skip
"""Modules that no test of a mutant runs."""
_RECORDS = (".md", ".json", ".toml", ".pyc")
"""What is written about tests."""


def digest(files: Iterable[Path], top: Path | None = None) -> str:
    """SHA-256 of the names and contents of a checkout's files (None: this one)."""
    top = top or paths.checkout()
    found = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(top)} {content}\n".encode())
    return found.hexdigest()


def of_coverage(test: Path, options: str) -> str:
    """A digest of what decides about the lines of the drivers that the tests of a file reach.

    That is less than what an outcome depends on: neither the machine nor the channel, nor who
    starts the tests.
    """
    ours = not paths.installed() and test.is_relative_to(paths.checkout())
    its = of_tests(test) if ours else digest([test], test.parent)
    return hashlib.sha256(f"{its} {_of_rig()} {options}".encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _of_rig() -> str:
    emu = paths.PACKAGE
    files = [path for floor in ("rig", "stack", "xen") for path in (emu / floor).rglob("*.py")]
    # Other people's tests run by the installed package, which has no checkout.
    return digest([*files, *_of_guests()], emu if paths.installed() else None)


@functools.lru_cache
def of_tests(file: Path) -> str:
    """Of a test's file with what it uses of ours, as they were when it was first asked for."""
    return digest(used_by(file, paths.checkout() / "tests"))


def used_by(file: Path, tests: Path) -> set[Path]:
    """A test's file, the conftest.py above it, and what they use of `tests`/support."""
    above = (folder / "conftest.py" for folder in file.parents if folder.is_relative_to(tests))
    left = [file, *(path for path in above if path.is_file())]
    support = {path for path in (tests / "support").rglob("*") if path.is_file()}
    found: set[Path] = set()
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        text = path.read_text("utf-8", "replace")
        names = _imported(text) if path.suffix == ".py" else frozenset[str]()
        left += [
            one
            for one in support - found
            if (one.suffix == ".py" and one.stem in names)
            or (one.suffix not in (".py", *_RECORDS) and _is_named(one, text))
        ]
    return found


def _is_named(path: Path, text: str) -> bool:
    return any(one in text for one in (path.name, f'"{path.stem}"', f"'{path.stem}'"))


def _imported(text: str) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return frozenset(found)


def rig_files() -> Iterator[Path]:
    """What an outcome depends on besides the test."""
    top = paths.checkout()
    yield top / "pyproject.toml"
    for path in (top / "emu").rglob("*.py"):
        of_commands = {"commands", "mutation"}.intersection(path.parts)
        if not of_commands and path.name not in _NOT_RUN:
            yield path
    yield from _of_guests()


def _of_guests() -> Iterator[Path]:
    return (path for path in paths.guest_images().rglob("*") if path.is_file())


def replaced(cache: Cache) -> Iterator[tuple[str, str]]:
    """Packages in place of those in the lock, which is one of the rig's files."""
    for package in lock_in_use(cache).entries:
        if package.instead_of:
            yield package.name, package.sha256
