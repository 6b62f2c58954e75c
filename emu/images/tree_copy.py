"""The copy of a kernel tree in which it is built, kept from one build to the next.

    <cache>/store/tree-<key>/linux/         the tree's files, and what make has built of them
    <cache>/store/tree-<key>/contents.json  which files of the tree they are
    <cache>/store/tree-<key>/path           the tree's path, for `emu cache`
    <cache>/store/tree-<key>/open           there while somebody copies or builds

Only files that differ are copied, so that make builds what depends on them. The tree itself is
read and never written; it may have been built in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from emu.errors import InputError
from emu.images import kbuild, manifest
from emu.images.context import BuildContext
from emu.images.manifest import JSON
from emu.images.source_tree import Contents, Tree, blob_of, link_of
from emu.progress import Progress

PATH = "path"
_TICK = 500
"""Files between two reports of progress."""
_FILE = 20_000
"""Bytes of the disk that a file of Linux takes on average (7.3: 1.8 GB, 96000 files)."""
_OBJECTS = 2 << 30
"""Bytes that a build takes beside the source: 0.8 GB in the lab configuration, more in others."""
_KEPT = 1 << 30
"""Bytes that a build in a kept copy may take on top."""


def name_of(tree: Tree, inputs: dict[str, JSON]) -> str:
    """The name in the cache's store of the copy of a tree that is built with these inputs."""
    key = manifest.canonical([str(tree.path), tree.line, inputs])
    return f"tree-{hashlib.sha256(key).hexdigest()[:16]}"


@contextlib.contextmanager
def kept_copy(tree: Tree, contents: Contents, name: str, context: BuildContext) -> Iterator[Path]:
    """A directory of ours with a tree's files, for make; what was built there before is there.

    It has the contents that were read, whatever happens to the tree afterwards. Others that want
    the same wait. A copy whose last user was killed is thrown away: it may hold half an object.
    Raises InputError when a file has changed since it was read.
    """
    with contextlib.ExitStack() as held:
        place = context.cache.store(name)
        if re.search(r"[\s:]", str(place.resolve())):
            # kbuild can't take the path; nothing is kept then.
            place = held.enter_context(kbuild.workplace(context.cache, "tree"))
        else:
            held.enter_context(context.cache.lock(name, f"builds {tree.path}", context.progress))
        mark = place / "open"
        if mark.exists():
            context.progress.note(f"the last build of {tree.path} was killed: beginning afresh")
            _empty(place, context)
        room = _KEPT if (place / "linux").exists() else _OBJECTS + _FILE * len(contents)
        context.cache.need(room, f"building {tree.path}")
        mark.touch()
        try:
            (place / PATH).write_text(f"{tree.path}\n")
            _copy(tree, contents, place, context.progress)
            yield place / "linux"
        finally:
            # However make has ended, it removed the target that it had not finished.
            mark.unlink(missing_ok=True)


def _copy(tree: Tree, contents: Contents, place: Path, progress: Progress) -> None:
    """Make the files of the tree in `place`/linux those of the tree."""
    linux, record = place / "linux", place / "contents.json"
    before: Contents = {}
    with contextlib.suppress(OSError, ValueError):
        before = {
            name: (mode, blob) for name, (mode, blob) in json.loads(record.read_bytes()).items()
        }
    gone = before.keys() - contents.keys()
    changed = [name for name, file in contents.items() if before.get(name) != file]
    if not gone and not changed:
        return
    # What is about to change is in neither state until it has changed.
    _write(record, {name: file for name, file in before.items() if contents.get(name) == file})
    for name in gone:
        (linux / name).unlink(missing_ok=True)
    for number, name in enumerate(changed):
        if number % _TICK == 0:
            progress.tick("copying the tree", number, len(changed))
        _copy_file(tree.path / name, linux / name, *contents[name])
    _write(record, contents)


def _copy_file(source: Path, into: Path, mode: str, blob: str) -> None:
    """Copy one file, or link, with the time of now: make takes it for new."""
    try:
        data = link_of(source) if mode == "120000" else source.read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    if blob_of(data) != blob:
        raise InputError(
            f"{source} has changed while it was read", hint="run again when nothing writes into it"
        )
    into.parent.mkdir(parents=True, exist_ok=True)
    if into.is_symlink() or (mode == "120000" and into.exists()):
        into.unlink()
    if mode == "120000":
        into.symlink_to(os.fsdecode(data))
    else:
        into.write_bytes(data)
        into.chmod(0o755 if mode == "100755" else 0o644)


def _write(record: Path, contents: Contents) -> None:
    new = record.with_suffix(".new")
    new.write_text(json.dumps(contents))
    new.replace(record)


def _empty(place: Path, context: BuildContext) -> None:
    """Remove all that is in `place`. A make that was left over works in what is moved away."""
    with context.cache.scratch("removed") as scratch:
        for path in list(place.iterdir()):
            path.rename(scratch / path.name)
