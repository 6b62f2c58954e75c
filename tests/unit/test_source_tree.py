"""A kernel tree as it is read: what counts, what differs from the commit, what is refused."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from kernel_trees import commit, git, small_tree

from emu.errors import InputError
from emu.images import source_tree
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.source_tree import Tree, read_tree

FRONT = "drivers/block/xen-blkfront.c"


@pytest.fixture
def context(tmp_path: Path) -> BuildContext:
    return BuildContext(Cache(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "linux")


def read(path: Path, context: BuildContext) -> Tree:
    return read_tree(path, context)[0]


def count_hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that are hashed from now on."""
    hashed = list[bytes]()
    whole = source_tree.blob_of

    def blob_of(data: bytes) -> str:
        hashed.append(data)
        return whole(data)

    monkeypatch.setattr(source_tree, "blob_of", blob_of)
    return hashed


def test_same_files_are_the_same_however_they_are_kept(
    tree: Path, tmp_path: Path, context: BuildContext
) -> None:
    plain = read(tree, context)
    assert (plain.release, plain.line, plain.commit) == ("7.3.0-rc5", "7.3", "")
    made = commit(tree)
    kept = read(tree, context)
    assert (kept.commit, kept.described, kept.dirty) == (made, made[:12], ())
    git(tree, "worktree", "add", "--quiet", str(tmp_path / "other"))
    assert {kept.digest, read(tmp_path / "other", context).digest} == {plain.digest}


def test_drivers_are_no_part_of_the_kernel(tree: Path, context: BuildContext) -> None:
    before = read(tree, context)
    for name in (FRONT, "drivers/block/xen-blkback/blkback.c", "drivers/block/xen-blkback/new.h"):
        (tree / name).write_text("int other;\n")
        after = read(tree, context)
        assert after.kernel_digest == before.kernel_digest
        assert after.digest != before.digest
        before = after
    (tree / "kernel/sched.c").write_text("int other;\n")
    assert read(tree, context).kernel_digest != before.kernel_digest


def test_mode_and_link_count(tree: Path, context: BuildContext) -> None:
    seen = {read(tree, context).kernel_digest}
    (tree / "kernel/sched.c").chmod(0o755)
    seen.add(read(tree, context).kernel_digest)
    (tree / "scripts/again.sh").unlink()
    seen.add(read(tree, context).kernel_digest)
    (tree / "scripts/again.sh").symlink_to("../Kbuild")
    seen.add(read(tree, context).kernel_digest)
    assert len(seen) == 4


def test_dirty_names_what_differs_from_the_commit(tree: Path, context: BuildContext) -> None:
    (tree / ".gitignore").write_text("*.o\n")
    commit(tree)
    clean = read(tree, context)
    assert clean.dirty == ()
    assert "clean" in str(clean)
    (tree / FRONT).write_text("int other;\n")
    (tree / "Kbuild").write_text("obj-y += other/\n")
    git(tree, "add", "Kbuild")
    (tree / "kernel/sched.c").unlink()
    (tree / "kernel/new.c").write_text("int new;\n")
    (tree / "kernel/new.o").write_text("an object")
    os.utime(tree / "Makefile")  # looked at, not changed
    dirty = read(tree, context)
    assert dirty.dirty == ("Kbuild", FRONT, "kernel/new.c", "kernel/sched.c")
    assert "dirty: 4 files" in str(dirty)
    commit(tree)
    committed = read(tree, context)
    assert (committed.dirty, committed.digest) == ((), dirty.digest)


def test_nothing_is_written_into_the_tree(tree: Path, context: BuildContext) -> None:
    commit(tree)
    os.utime(tree / "Makefile")  # `git status` would note that in its index
    before = {path: path.lstat() for path in [tree, *tree.rglob("*")]}
    read(tree, context)
    after = {path: path.lstat() for path in [tree, *tree.rglob("*")]}
    assert after.keys() == before.keys()
    assert all(after[path].st_mtime_ns == found.st_mtime_ns for path, found in before.items())


def test_git_of_around_is_not_the_trees(tree: Path, context: BuildContext) -> None:
    (tree.parent / "notes").write_text("mine\n")
    (tree.parent / ".gitignore").write_text("linux\ncache\n")
    commit(tree.parent)
    assert read(tree, context).commit == ""


def test_a_trees_git_may_ignore_all_of_it(tree: Path, context: BuildContext) -> None:
    """Like that of Debian's linux-source."""
    commit(tree)
    (tree / ".gitignore").write_text("/*\n!/debian/\n")
    (tree / "kernel/new.c").write_text("int new;\n")
    (tree / "kernel/new.o").write_text("an object")
    assert read(tree, context).dirty == (".gitignore", "kernel/new.c")


def test_second_look_reads_only_what_has_changed(
    tree: Path, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(source_tree._SETTLED_NS / 1e9 + 0.1)
    first = read(tree, context)
    hashed = count_hashed(monkeypatch)
    assert read(tree, context) == first
    assert hashed == []
    # Another content of the same size, with the times put back: the change time tells.
    path = tree / "kernel/sched.c"
    found = path.stat()
    path.write_text("int sxhed;\n")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert read(tree, context).digest != first.digest
    assert hashed == [b"int sxhed;\n"]


def test_what_was_just_written_is_read_again(
    tree: Path, context: BuildContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change once more before the clock of its file system ticks."""
    read(tree, context)
    hashed = count_hashed(monkeypatch)
    read(tree, context)
    assert hashed


def test_what_a_build_left_does_not_count(tree: Path, context: BuildContext) -> None:
    before = read(tree, context)
    for name in (
        ".config", "vmlinux", "kernel/sched.o", "kernel/.sched.o.cmd", "include/config/auto.conf",
        "include/generated/utsrelease.h", "arch/x86/include/generated/asm/x.h",
        "drivers/block/xen-blkback/xen-blkback.mod.c", "modules.order",
    ):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("built\n")
    assert read(tree, context).digest == before.digest


def test_what_is_no_tree_is_refused(tree: Path, tmp_path: Path, context: BuildContext) -> None:
    with pytest.raises(InputError, match=r"there is no directory .*nowhere"):
        read(tmp_path / "nowhere", context)
    with pytest.raises(InputError, match="kernel is no kernel tree") as refused:
        read(tree / "kernel", context)
    assert refused.value.hint == f"its top is {tree}"
    (tree / FRONT).unlink()
    with pytest.raises(InputError, match=rf"Linux 7\.3\.0-rc5\) has no {FRONT}"):
        read(tree, context)
    config = tree / "arch/x86/xen/Kconfig"
    config.write_text(config.read_text().replace("config XEN_PVH\n", "config XEN_PVHVM\n"))
    with pytest.raises(InputError, match="has no CONFIG_XEN_PVH in arch/x86/xen/Kconfig") as old:
        read(tree, context)
    assert old.value.hint is not None
    assert "4.11" in old.value.hint
    shutil.rmtree(tree / "arch")
    with pytest.raises(InputError, match="has no CONFIG_XEN in arch/x86/xen/Kconfig"):
        read(tree, context)
