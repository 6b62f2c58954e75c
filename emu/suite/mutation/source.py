"""The C source of the drivers as a syntax tree: its functions, and what lies where in them.

tree-sitter reads C without a preprocessor. What it does not know are a few words of the kernel's,
which are blanked out (nothing moves), and macros that take types or are followed by a block: it
marks these places as errors, and goes on behind them. What is made of such a place has to pass
the compiler.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emu.errors import InputError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

FRONT_FILES = ("drivers/block/xen-blkfront.c",)
BACK_FILES = (
    "drivers/block/xen-blkback/blkback.c",
    "drivers/block/xen-blkback/xenbus.c",
    "drivers/block/xen-blkback/common.h",
)
FILES = (*FRONT_FILES, *BACK_FILES)
"""The files of both drivers that have code, by their names in a kernel tree."""

_BLANKED = re.compile(
    rb"\b(?:__init|__exit|__ref|__always_inline|__maybe_unused|__must_check|__user|fallthrough)\b"
)


@dataclass(frozen=True)
class Function:
    """A function's definition: its name, what it returns (as it is written), its body."""

    name: str
    returns: str
    body: Node


@dataclass(frozen=True)
class Source:
    """A file of a driver, by its name in a kernel tree."""

    file: str
    content: bytes

    def text(self, node: Node) -> str:
        """What a node stands for, as it is written."""
        return self.content[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def line(self, number: int) -> str:
        """A line's text without the white space around it; lines are counted from 1."""
        return self._lines[number - 1].decode("utf-8", "replace").strip()

    @functools.cached_property
    def _lines(self) -> list[bytes]:
        return self.content.split(b"\n")

    def before(self, number: int) -> int:
        """The line of what is done before the statement on a line: where the statement before it
        begins, or the one it is a part of; else the line before.
        """
        return self._before.get(number, number - 1)

    @functools.cached_property
    def _before(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for function in self.functions():
            for node in walk(function.body):
                if node.type.endswith("_statement") and node.type != "compound_statement":
                    earlier = _earlier(node)
                    if earlier is not None and earlier.start_point[0] < node.start_point[0]:
                        row = node.start_point[0] + 1
                        found.setdefault(row, earlier.start_point[0] + 1)
        return found

    def functions(self) -> Iterator[Function]:
        """The functions that are defined in the file, in order."""
        blanked = _BLANKED.sub(lambda found: b" " * len(found[0]), self.content)
        for node in walk(_parser().parse(blanked).root_node):
            if node.type != "function_definition":
                continue
            body, declarator = node.child_by_field_name("body"), _declarator(node)
            if body is None or declarator is None:
                continue
            named, kind = declarator.child_by_field_name("declarator"), _returned(node, declarator)
            if named is not None:
                returns = blanked[slice(*kind)].decode("utf-8", "replace")
                yield Function(self.text(named), " ".join(returns.split()), body)


def read_sources(tree: Path) -> tuple[Source, ...]:
    """The drivers' files below a tree."""
    return tuple(Source(file, (tree / file).read_bytes()) for file in FILES)


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)


def _earlier(statement: Node) -> Node | None:
    """The statement or declaration before one, or what it is the body of."""
    node: Node | None = statement.prev_named_sibling
    while node is not None and not node.type.endswith(("_statement", "declaration")):
        node = node.prev_named_sibling
    if node is None:
        node = statement.parent
        if node is not None and node.type == "compound_statement":
            node = node.parent
    return node


def _declarator(definition: Node) -> Node | None:
    """The part of a definition that has name and parameters, behind the stars of a pointer."""
    found = definition.child_by_field_name("declarator")
    while found is not None and found.type == "pointer_declarator":
        found = found.child_by_field_name("declarator")
    return found if found is not None and found.type == "function_declarator" else None


def _returned(definition: Node, declarator: Node) -> tuple[int, int]:
    kind = definition.child_by_field_name("type")
    return (kind or definition).start_byte, declarator.start_byte


@functools.lru_cache(maxsize=1)
def _parser() -> Parser:
    try:
        import tree_sitter
        import tree_sitter_c
    except ImportError:
        raise InputError(
            "tree-sitter, which reads the drivers' source, is not installed",
            hint="pip install -e '.[test]', or make setup",
        ) from None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))
