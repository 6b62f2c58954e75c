"""Where the drivers' source comes from: packages and trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_trees import commit as commit_all
from kernel_trees import git

from emu.errors import InputError
from emu.images import driver_source
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_source import BACK, FRONT, HEADER, package_source, read_tree, tree_release
from emu.images.kernel_specs import spec

MAKEFILE = "# SPDX\nVERSION = 7\nPATCHLEVEL = 4\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\nNAME = Baby\n"


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    """A kernel tree, as far as the drivers go."""
    top = tmp_path / "linux"
    for name, text in {
        "Makefile": MAKEFILE,
        "Kbuild": "",
        FRONT: "/* front */\n",
        f"{BACK}Makefile": "obj-m := xen-blkback.o\n",
        f"{BACK}blkback.c": "/* back */\n",
        f"{BACK}common.h": "/* both */\n",
        HEADER: "/* protocol */\n",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def contents(top: Path) -> dict[str, bytes]:
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def test_package_source_has_the_version_and_the_locks_digest(tmp_path: Path) -> None:
    context = BuildContext(Cache(tmp_path / "cache"))
    for name, version in (("debian-6.1", "6.1"), ("lab-6.12", "6.12"), ("debian-7.3", "7.3")):
        source = package_source(spec(name), context)
        assert source.version == version
        assert source.origin.startswith(f"linux-source-{version} {source.release}")
    assert package_source(spec("lab-6.1"), context).digest == (
        package_source(spec("debian-6.1"), context).digest
    )


def test_tree_gives_its_drivers_and_version(linux: Path, tmp_path: Path) -> None:
    for built in ("blkback.o", "xen-blkback.ko", "xen-blkback.mod.c", ".blkback.o.cmd"):
        (linux / BACK / built).write_text("built\n")
    before = contents(linux)
    source = read_tree(linux)
    assert (source.release, source.version) == ("7.4.0-rc1", "7.4")
    assert source.origin == str(linux)
    assert source.git is None
    (linux / FRONT).write_text("changed later\n")
    source.copy(tmp_path / "copy", BuildContext(Cache(tmp_path / "cache")))
    copied = contents(tmp_path / "copy")
    assert sorted(copied) == sorted(
        [FRONT, f"{BACK}Makefile", f"{BACK}blkback.c", f"{BACK}common.h", HEADER]
    )
    assert copied[FRONT] == before[FRONT]  # what the digest is of, whatever came after
    assert contents(linux) == {**before, FRONT: b"changed later\n"}


def test_digest_is_of_the_drivers_alone(linux: Path) -> None:
    first = read_tree(linux).digest
    (linux / "Makefile").write_text(MAKEFILE.replace("-rc1", "-rc2"))
    (linux / BACK / "blkback.o").write_text("built\n")
    assert read_tree(linux).digest == first
    seen = {first}
    for name in (FRONT, f"{BACK}common.h", HEADER):
        (linux / name).write_text(f"/* another {name} */\n")
        seen.add(read_tree(linux).digest)
    (linux / BACK / "more.c").write_text("")
    seen.add(read_tree(linux).digest)
    assert len(seen) == 5


def test_git_tree_has_its_commit_and_is_dirty_by_the_drivers_alone(linux: Path) -> None:
    git(linux, "init", "-q")
    git(linux, "add", ".")
    git(linux, "commit", "-q", "-m", "base")
    commit = git(linux, "rev-parse", "HEAD")
    index = (linux / ".git/index").read_bytes()
    os.utime(linux / FRONT, (10**9, 10**9))  # `git status` would write that into the index
    (linux / "Kbuild").write_text("# changed\n")
    state = read_tree(linux).git
    assert state is not None
    assert (state.commit, state.dirty, str(state)) == (commit, False, commit[:12])
    assert (linux / ".git/index").read_bytes() == index
    (linux / BACK / "more.c").write_text("/* not added yet */\n")
    state = read_tree(linux).git
    assert state is not None
    assert (state.dirty, str(state)) == (True, f"{commit[:12]}, with changes")


def test_git_of_around_is_not_the_trees(linux: Path) -> None:
    (linux.parent / "notes").write_text("mine\n")
    (linux.parent / ".gitignore").write_text("linux\n")
    commit_all(linux.parent)
    assert read_tree(linux).git is None


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (lambda top: (top / "Makefile").unlink(), "is no kernel tree", "top of a kernel tree"),
        (lambda top: (top / "Makefile").write_text("all:\n"), "is no kernel tree", "top of a"),
        (lambda top: (top / FRONT).unlink(), f"it has no {FRONT}", None),
        (lambda top: (top / BACK / "Makefile").unlink(), f"it has no {BACK}Makefile", None),
    ],
)
def test_directory_that_is_no_kernel_tree_is_refused(
    linux: Path, spoil: Callable[[Path], object], message: str, hint: str | None
) -> None:
    spoil(linux)
    with pytest.raises(InputError, match=message) as refused:
        read_tree(linux)
    assert str(linux) in refused.value.message
    assert (refused.value.hint or "").find(hint or "") >= 0


def test_folder_inside_a_tree_names_the_top(linux: Path) -> None:
    with pytest.raises(InputError) as refused:
        tree_release(linux / "drivers/block")
    assert refused.value.hint == f"its top is {linux}"
    with pytest.raises(InputError, match=f"there is no directory {linux}/nowhere"):
        read_tree(linux / "nowhere")
    assert driver_source.tree_release(linux) == "7.4.0-rc1"
