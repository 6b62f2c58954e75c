"""A kernel of a source tree on this machine: `--tree PATH`, `--config FILE`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from emu.images import configuration, kbuild
from emu.images.built_kernel import KernelSource, built_kernel
from emu.images.configuration import Configuration
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.images.source_tree import Contents, Tree, check_tree, read_tree
from emu.images.tree_copy import kept_copy, name_of

_DIGITS = 8
"""Hex digits of the content in `uname -r`."""
_LONG = 20.0
"""Seconds of a build after which it is worth a look whether the tree is still the same."""
_read: dict[Path, tuple[Tree, Contents]] = {}
"""Trees that this process has read: a run, like a session of tests, has one state of each."""


@dataclass(frozen=True)
class TreeWish:
    """A kernel that was asked for by its source: a tree, perhaps with a configuration of its own.

    A relative path is taken from the current directory, now.
    """

    path: Path
    config: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.expanduser().absolute())
        if self.config is not None:
            object.__setattr__(self, "config", self.config.expanduser().absolute())

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        """Raise InputError for what is no kernel tree, or no configuration; builds nothing."""
        configuration.for_tree(check_tree(self.path), self.config)


@dataclass(frozen=True)
class TreeKernelSource(KernelSource):
    """The files of a tree, as they were when it was read."""

    tree: Tree
    contents: Contents = field(repr=False, compare=False)
    kind = "kernel-tree"
    # They are built for themselves, whenever they change: what the kernel was last built with
    # is in no key.
    left_out = frozenset({"xen_blkback", "xen_blkfront"})

    def __str__(self) -> str:
        return str(self.tree.path)

    @property
    def localversion(self) -> str:  # type: ignore[override]
        return f"-tree-{self.tree.kernel_digest[:_DIGITS]}"

    def inputs(self) -> dict[str, JSON]:
        return {"tree": self.tree.kernel_digest}

    @contextlib.contextmanager
    def place(
        self, configured: Configuration, toolchain: kbuild.Toolchain, context: BuildContext
    ) -> Iterator[Path]:
        name = name_of(self.tree, {**configured.inputs(), "toolchain": toolchain.version})
        with kept_copy(self.tree, self.contents, name, context) as linux:
            yield linux


def tree_kernel(wanted: TreeWish, context: BuildContext) -> tuple[Path, Tree]:
    """The files of a tree's kernel, from the cache or built now, and what the tree was.

    The tree is read once in a process; what changes afterwards is for the next one.
    Raises InputError as `TreeWish.check` and `built_kernel`.
    """
    wanted.check()
    if wanted.path not in _read:
        _read[wanted.path] = read_tree(wanted.path, context)
    tree, contents = _read[wanted.path]
    source = TreeKernelSource(tree, contents)
    configured = configuration.for_tree(tree.release, wanted.config)
    began = time.monotonic()
    root = built_kernel(source, configured, context)
    if time.monotonic() - began > _LONG and read_tree(wanted.path, context)[0] != tree:
        context.progress.note(
            f"{tree.path} has changed since the build began: what runs is content "
            f"{tree.digest[:12]}, of then"
        )
    return root, tree
