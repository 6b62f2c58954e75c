"""The copy of a tree in which it is built: what is copied, when it is thrown away."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from kernel_trees import small_tree

from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.source_tree import link_of, read_tree
from emu.images.tree_copy import kept_copy, name_of

NAME = "tree-0123"


@pytest.fixture
def context(tmp_path: Path) -> BuildContext:
    return BuildContext(Cache(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "linux")


def copy(tree: Path, context: BuildContext) -> Path:
    with kept_copy(*read_tree(tree, context), NAME, context) as linux:
        return linux


def files(top: Path) -> dict[str, object]:
    return {
        str(path.relative_to(top)): link_of(path) if path.is_symlink() else path.read_bytes()
        for path in top.rglob("*")
        if not path.is_dir()
    }


def test_copy_follows_the_tree_and_keeps_what_was_built(tree: Path, context: BuildContext) -> None:
    linux = copy(tree, context)
    assert files(linux) == files(tree)
    assert (linux / "scripts/run.sh").stat().st_mode & 0o111
    (linux / "kernel/sched.o").write_text("an object")
    unchanged = (linux / "kernel/sched.c").stat().st_mtime_ns
    built = (linux / "kernel/sched.o").stat().st_mtime_ns
    (tree / "Kbuild").write_text("obj-y += other/\n")
    (tree / "scripts/run.sh").unlink()
    (tree / "scripts/again.sh").unlink()
    (tree / "scripts/again.sh").symlink_to("other.sh")
    assert copy(tree, context) == linux
    (linux / "kernel/sched.o").unlink()
    assert files(linux) == files(tree)
    assert (linux / "kernel/sched.c").stat().st_mtime_ns == unchanged
    # make goes by that: a changed file is newer than what was built, whatever its own time is.
    assert (linux / "Kbuild").stat().st_mtime_ns > built


def test_file_that_changes_between_look_and_copy_is_refused(
    tree: Path, context: BuildContext
) -> None:
    linux = copy(tree, context)
    (tree / "kernel/sched.c").write_text("int second;\n")
    seen = read_tree(tree, context)
    (tree / "kernel/sched.c").write_text("int third;\n")
    with (
        pytest.raises(InputError, match=r"sched\.c has changed while it was read"),
        kept_copy(*seen, NAME, context),
    ):
        pass
    assert "kernel/sched.c" not in json.loads((linux.parent / "contents.json").read_bytes())
    (tree / "kernel/sched.c").write_text("int sched;\n")
    assert files(copy(tree, context)) == files(tree)


def test_copy_of_a_killed_build_is_thrown_away(tree: Path, context: BuildContext) -> None:
    linux = copy(tree, context)
    (linux / "kernel/sched.o").write_text("half an object")
    (linux.parent / "open").touch()  # whoever had it has not come to its end
    assert files(copy(tree, context)) == files(tree)


def test_copy_of_a_failed_build_is_kept(tree: Path, context: BuildContext) -> None:
    kept = kept_copy(*read_tree(tree, context), NAME, context)
    (kept.__enter__() / "kernel/other.o").write_text("an object")
    assert not kept.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (copy(tree, context) / "kernel/other.o").exists()


def test_two_at_once_wait_for_each_other(tree: Path, context: BuildContext) -> None:
    ended: list[str] = []

    def second() -> None:
        copy(tree, context)
        ended.append("second")

    thread = threading.Thread(target=second)
    with kept_copy(*read_tree(tree, context), NAME, context):
        thread.start()
        time.sleep(0.5)
        ended.append("first")
    thread.join(20)
    assert ended == ["first", "second"]


def test_full_disk_is_said_before_anything_is_copied(
    tree: Path, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_tree(tree, context)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 20))
    with (
        pytest.raises(RigError, match=r"no room on the disk: building .*linux needs 2\d+ MiB"),
        kept_copy(*seen, NAME, context),
    ):
        pass
    assert not (context.cache.root / "store" / NAME / "linux").exists()


def test_another_line_or_configuration_has_another_copy(tree: Path, context: BuildContext) -> None:
    seen, _ = read_tree(tree, context)
    (tree / "Makefile").write_text((tree / "Makefile").read_text().replace("= 3", "= 4"))
    newer, _ = read_tree(tree, context)
    names = {name_of(seen, {"config": "a"}), name_of(seen, {"config": "b"})}
    assert len({*names, name_of(newer, {"config": "a"})}) == 3
    (tree / "kernel/sched.c").write_text("int other;\n")
    assert name_of(read_tree(tree, context)[0], {"config": "a"}) == name_of(newer, {"config": "a"})
