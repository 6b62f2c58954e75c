"""A kernel source tree on this machine, as it is now: which files count, and what they hold.

Nothing is written into the tree, nor into its git directory. A file counts if git tracks it, or
would (it is not ignored); in a directory that is no work tree of git's, unless it looks like what
a build leaves. Contents are compared as git's blobs are, by SHA-1, so that a work tree, a clone of
it and an unpacked archive of the same files are the same. What stat(2) reported of a file when it
was hashed is remembered in the cache: a second look reads no file that has not changed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError
from emu.images.catalogue import line_of
from emu.images.context import BuildContext
from emu.images.driver_source import BACK, FRONT, tree_release
from emu.images.git_state import WorkTree

_STORE = "tree-index"
_FORM = 2
"""Raised when what is remembered of a file changes its meaning."""
_SETTLED_NS = 1_000_000_000
"""A file that changed this shortly before it was hashed may change again in the same tick."""
_TICK = 4000
"""Files between two reports of progress."""
_OPTIONS = {
    "XEN": "arch/x86/xen/Kconfig",
    "XEN_PV": "arch/x86/xen/Kconfig",
    "XEN_PVH": "arch/x86/xen/Kconfig",
    "XEN_DOM0": "arch/x86/xen/Kconfig",
    "XEN_BLKDEV_FRONTEND": "drivers/block/Kconfig",
    "XEN_BLKDEV_BACKEND": "drivers/block/Kconfig",
}
"""Options without which no configuration will do, and where Linux has them since 4.11."""
_PRODUCTS = (
    "*.o", "*.a", "*.ko", "*.mod", "*.mod.c", "*.cmd", "*.order", "*.symvers", "*.so", "*.so.dbg",
    ".config", ".config.old", ".tmp_*", ".*.d", ".version", "System.map", "vmlinux", "bzImage",
    "vmlinux.bin", "vmlinux.unstripped", "vmlinuz*", "modules.builtin*", ".git", "*.tmp", "*.orig",
    "*.rej", "*~", "*.swp", "tags", "TAGS", "cscope*", "GPATH", "GTAGS", "GRTAGS",
)  # fmt: skip
"""Names of what builds, editors and indexers leave in a directory."""
_PRODUCT_FOLDERS = ("include/config", "include/generated", "arch/*/include/generated")

Contents = Mapping[str, tuple[str, str]]
"""Of each file, by its name in the tree: mode ("100644", "100755", for a link "120000"), SHA-1."""


@dataclass(frozen=True)
class Tree:
    """A kernel tree as it was when it was read.

    `release` is what its Makefile says ("7.3.4"). `digest` is SHA-256 of all names, modes and
    contents; `kernel_digest` leaves out the sources of the two block drivers, which are built
    for themselves. `commit` and `described` (`git describe`) are empty outside git; `dirty` are the
    files that differ from the commit.
    """

    path: Path
    release: str
    digest: str
    kernel_digest: str
    commit: str = ""
    described: str = ""
    dirty: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The release line: "7.3" of "7.3.4" and of "7.3.0-rc1"."""
        return line_of(self.release)

    def __str__(self) -> str:
        words = [str(self.path), f"Linux {self.release}"]
        if self.commit:
            words.append(f"{self.described} ({self.commit[:12]})")
            words.append(_dirty(self.dirty) if self.dirty else "clean")
        return " · ".join([*words, f"content {self.digest[:12]}"])


def check_tree(path: Path) -> str:
    """The version of a kernel tree, which its Makefile has.

    Raises InputError for what is no kernel tree, and for one that can't run under Xen.
    """
    release = tree_release(path)
    for option, name in _OPTIONS.items():
        with contextlib.suppress(OSError):
            text = (path / name).read_text(errors="replace")
            if re.search(rf"^config {option}$", text, re.MULTILINE):
                continue
        raise InputError(
            f"{path} (Linux {release}) has no CONFIG_{option} in {name}",
            hint="the guests need Linux 4.11 or later, with PV, PVH and both block drivers of Xen",
        )
    for name in (FRONT, f"{BACK}blkback.c"):
        if not (path / name).is_file():
            raise InputError(f"{path} (Linux {release}) has no {name}")
    return release


def read_tree(path: Path, context: BuildContext) -> tuple[Tree, Contents]:
    """A tree as it is now, and its files. The first look reads all of them (10 s), others few.

    Raises InputError as `check_tree`, and for a file that can't be read.
    """
    path = path.expanduser().absolute()
    release = check_tree(path)
    with context.progress.stage(f"reading {path}"):
        git = _Git(path)
        contents = _contents(path, git.files() if git.works else _walk(path), context)
        commit, described, dirty = git.state(contents) if git.works else ("", "", ())
    tree = Tree(
        path,
        release,
        digest_of(contents),
        digest_of({name: file for name, file in contents.items() if not is_driver(name)}),
        commit,
        described,
        dirty,
    )
    return tree, contents


def is_driver(name: str) -> bool:
    """Whether a file of a kernel tree is the source of one of the two block drivers."""
    return name == FRONT or name.startswith(BACK)


def digest_of(contents: Contents) -> str:
    """SHA-256 of names, modes and contents."""
    rows = sorted(f"{name}\0{mode} {blob}\n" for name, (mode, blob) in contents.items())
    return hashlib.sha256("".join(rows).encode(errors="surrogateescape")).hexdigest()


def link_of(path: str | Path) -> bytes:
    """The target of a link as it is written; pathlib would leave out each "./"."""
    return os.readlink(os.fsencode(path))  # noqa: PTH115


def blob_of(data: bytes) -> str:
    """SHA-1 of a file's content as git has it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _dirty(names: tuple[str, ...]) -> str:
    return f"dirty: {len(names)} file{'s' if len(names) > 1 else ''}"


def _contents(path: Path, names: Iterable[str], context: BuildContext) -> Contents:
    index = _Index(path, context)
    names = list(names)
    contents = {}
    for number, name in enumerate(names):
        if number % _TICK == 0:
            context.progress.tick("files", number, len(names))
        try:
            if (file := index.look(name)) is not None:
                contents[name] = file
        except OSError as error:
            raise InputError(f"{path / name} cannot be read: {error.strerror}") from error
    index.save()
    return contents


class _Index:
    """What stat(2) said of each file when it was hashed, with mode and hash."""

    def __init__(self, path: Path, context: BuildContext) -> None:
        self._top = os.fspath(path)
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
        self._file = context.cache.store(_STORE) / f"{name}.json"
        self._known: dict[str, list[int | str]] = {}
        self._now: dict[str, list[int | str]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = json.loads(self._file.read_bytes())
            if known.get("tree") == self._top and known.get("form") == _FORM:
                self._known = known["files"]

    def look(self, name: str) -> tuple[str, str] | None:
        """Mode and hash of a file, None if there is none (any more), or it is a directory."""
        path = f"{self._top}/{name}"
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        seen = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        known = self._known.get(name)
        if known is not None and known[:4] == seen:
            self._now[name] = known
            return str(known[4]), str(known[5])
        self._changed = True
        if stat.S_ISLNK(found.st_mode):
            mode, blob = "120000", blob_of(link_of(path))
        elif stat.S_ISREG(found.st_mode):
            mode = "100755" if found.st_mode & stat.S_IXUSR else "100644"
            with open(path, "rb", 0) as handle:  # noqa: PTH123 (a hundred thousand of them)
                blob = blob_of(handle.read())
        else:
            return None
        if time.time_ns() - found.st_ctime_ns > _SETTLED_NS:
            self._now[name] = [*seen, mode, blob]
        return mode, blob

    def save(self) -> None:
        """Remember, where something is new. A full disk costs the next look some time, no more."""
        if not self._changed and len(self._now) == len(self._known):
            return
        with contextlib.suppress(OSError):
            new = self._file.with_suffix(f".{os.getpid()}")
            try:
                new.write_text(json.dumps({"tree": self._top, "form": _FORM, "files": self._now}))
                new.replace(self._file)
            finally:
                new.unlink(missing_ok=True)


def _walk(path: Path) -> Iterator[str]:
    """The files below a directory that do not look like a build's, by name."""
    products = re.compile("|".join(fnmatch.translate(one) for one in _PRODUCTS))
    folders = re.compile("|".join(fnmatch.translate(one) for one in _PRODUCT_FOLDERS))
    stack = [""]
    while stack:
        prefix = stack.pop()
        try:
            with os.scandir(path / prefix) as found:
                for item in found:
                    name = prefix + item.name
                    if products.match(item.name):
                        continue
                    if not item.is_dir(follow_symlinks=False):
                        yield name
                    elif not folders.match(name):
                        stack.append(f"{name}/")
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


class _Git(WorkTree):
    """A kernel tree as git has it."""

    def files(self) -> list[str]:
        """What is tracked, and what is neither tracked nor ignored, by name."""
        names = set(self._list("ls-files", "-z", "--cached"))
        if self.ask("check-ignore", "--no-index", "Makefile"):
            # Debian's sources ignore everything but their packaging.
            names |= set(_walk(self.path))
        else:
            names |= set(self._list("ls-files", "-z", "--others", "--exclude-standard"))
        return sorted(names)

    def state(self, contents: Contents) -> tuple[str, str, tuple[str, ...]]:
        """The commit, its description, and the files that differ from it."""
        commit = self.ask("rev-parse", "HEAD").strip()
        described = self.ask("describe", "--tags", "--always", "--abbrev=12").strip()
        # As `git ls-tree` prints them: a hundred thousand lines are compared as they are.
        there = {f"{mode} blob {blob}\t{name}" for name, (mode, blob) in contents.items()}
        committed = {row for row in self._list("ls-tree", "-r", "-z", "HEAD") if " blob " in row}
        differ = {row.partition("\t")[2] for row in there ^ committed}
        return commit, described, tuple(sorted(differ))

    def _list(self, *arguments: str) -> list[str]:
        return [name for name in self.ask(*arguments).split("\0") if name]
