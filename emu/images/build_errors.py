"""Why drivers do not compile: which interface of the kernel is another, whose patch has the line.

The compiler's messages (gcc's, with LC_ALL=C) are shown by line; those of a tree that is for
another Linux than the kernel are said in terms of what this kernel has.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from emu.errors import InputError
from emu.images.compiler_messages import Message, read_messages
from emu.images.driver_patches import in_kernel
from emu.images.driver_recipe import Recipe, Version
from emu.images.driver_source import TreeSource
from emu.images.kbuild import BuildFailed
from emu.images.kernels import Kernel
from emu.images.patch_files import Patch

_SHOWN = 8
_MOVED = (
    (r"implicit declaration of function '(\w+)'", "has no {0}()"),
    (r"'((?:struct|union) \w+)'.* has no member named '(\w+)'", "has no {1} in {0}"),
    (r"too (?:few|many) arguments to function '(\w+)'", "has {0}() with other arguments"),
    (r"passing argument \d+ of '(\w+)' ", "has {0}() with other arguments"),
    (r"'(\w+)' undeclared .*", "has no {0}"),
    (r"unknown type name '(\w+)'", "has no type {0}"),
    (r"(\S+\.h): No such file or directory", "has no header {0}"),
    (r"initialization of .* from incompatible pointer type '.+?'.*\n.*near initialization for "
     r"'([\w.]+)'", "has another type of function for {0}"),
    (r"invalid use of undefined type '(.+?)'", "has no {0}"),
    (r"macro \"(\w+)\" .*(?:arguments|given \d+).*", "has {0}() with other arguments"),
    (r"\"(\w+)\" \[.*\] undefined!", "does not export {0}()"),
)  # fmt: skip
"""The messages about an interface that the kernel has otherwise, and what it has instead."""


def explained(
    failed: BuildFailed, recipe: Recipe, kernel: Kernel, versions: Sequence[Version]
) -> InputError:
    """The error for a build that failed: its first messages, one a line.

    Each has the file, the line and the patch that wrote this line last, if it was one of
    `recipe.more`: `versions` are the sources before and after each of these.
    """
    # From 6.13 on make runs in the directory of the drivers, and names files from there.
    errors = [
        replace(one, file=in_kernel(one.file))
        for one in read_messages(failed.output)
        if _is_error(one)
    ]
    if not errors:
        return failed
    owners = {name: owners_of(name, versions) for name in {one.file for one in errors}}
    moved = {(one.file, one.line) for one in errors if _said(one)}
    found: dict[tuple[str, str], list[Message]] = {}
    other = isinstance(recipe.source, TreeSource) and not kernel.release.startswith(
        (f"{recipe.source.version}.", f"{recipe.source.version}-")
    )
    for one in errors:
        said = _said(one)
        # What else the compiler says of such a line follows from it.
        if said is None and (one.file, one.line) in moved:
            continue
        text = f"this kernel {said}" if said and other else one.text
        found.setdefault((one.file, text), []).append(one)
    lines = []
    for (file, text), messages in found.items():
        first = messages[0]
        where = f"{file}:{first.line}: " if first.line else f"{file}: " if file else ""
        places = len({one.line for one in messages})
        more = f" ({places} places)" if places > 1 else ""
        lines.append(f"{where}{text}{more}{_owner(first, owners)}")
    count = len(lines)
    lines = [*lines[:_SHOWN], *([f"… and {count - _SHOWN} more"] if count > _SHOWN else [])]
    return InputError(
        f"the drivers ({recipe}) do not build for Linux {kernel.release}: "
        f"{count} error{'s' if count > 1 else ''}",
        lines=lines,
        hint=_hint(recipe, kernel) if moved else None,
    )


def _is_error(message: Message) -> bool:
    return any(re.search(r"(?:^|[ :])(?:error|ERROR): ", line) for line in message.lines)


def _said(message: Message) -> str | None:
    near = [line for line in message.lines if "(near initialization for" in line]
    text = "\n".join([re.sub(r" \[-W[^\]]*\]$", "", message.text), *near])
    for pattern, words in _MOVED:
        if found := re.search(pattern, text):
            return words.format(*found.groups())
    return None


def _hint(recipe: Recipe, kernel: Kernel) -> str | None:
    if not isinstance(recipe.source, TreeSource):
        return None
    return (
        f"the tree is Linux {recipe.source.release}, the kernel {kernel.release}: take a "
        "kernel of the tree's version (--kernel), or build the tree's own (--tree)"
    )


def _owner(message: Message, owners: Mapping[str, Sequence[Patch | None]]) -> str:
    patch = owner_of(message, owners)
    return f"  [line of {patch}]" if patch else ""


def owner_of(message: Message, owners: Mapping[str, Sequence[Patch | None]]) -> Patch | None:
    """Which patch wrote the line of a message last; `owners` are those of each file's lines."""
    of_file = owners[message.file]
    if message.line is None or not 0 < message.line <= len(of_file):
        return None
    return of_file[message.line - 1]


def owners_of(name: str, versions: Sequence[Version]) -> list[Patch | None]:
    """For each line of a file which patch wrote it last; None: none of these patches."""
    owners: list[Patch | None] = []
    rows: list[str] = []
    for number, version in enumerate(versions):
        after = version.files.get(name, b"").decode("utf-8", "surrogateescape").split("\n")
        matcher = difflib.SequenceMatcher(None, rows, after, autojunk=False)
        now: list[Patch | None] = [version.patch if number else None] * len(after)
        for block in matcher.get_matching_blocks() if number else ():
            now[block.b : block.b + block.size] = owners[block.a : block.a + block.size]
        owners, rows = now, after
    return owners
