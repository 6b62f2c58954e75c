"""Kernels of a source tree: built of what it holds, and only what has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emu_command import EmuCommand, Warm
from kernel_trees import MAKEFILE, commit, git

from emu.errors import EXIT_INPUT, EXIT_INTERRUPTED, InputError
from emu.images import kbuild
from emu.images.built_kernel import source_deb, unpack_source
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_source import driver_source
from emu.images.kconfig import read_config
from emu.images.kernel_specs import spec
from emu.images.kernels import Kernel, get_kernel
from emu.images.modules import ENDS, Driver, End, get_driver
from emu.images.patching import apply_patch
from emu.images.source_tree import Tree
from emu.stack.drivers import connect
from emu.stack.stack import Stack

FRONT = "drivers/block/xen-blkfront.c"
LAB = "lab-6.1"
FORK, LATER = "linux/kernel/fork.o", "linux/kernel/.resource.o.cmd"
"""One of the first objects of a kernel below the copy of its tree, and a file that make writes
when that is whole: one that is not is removed when make is interrupted."""


@pytest.fixture
def drivers_tree(context: BuildContext, tmp_path: Path) -> Path:
    """What of a tree its drivers are built of: the sources of the lab kernel's package."""
    tree = tmp_path / "linux"
    shutil.copytree(driver_source(spec(LAB), context) / "drivers", tree / "drivers")
    (tree / "Makefile").write_text(MAKEFILE.replace("= 7", "= 6").replace("= 3", "= 1"))
    return tree


@pytest.fixture
def build(context: BuildContext, drivers_tree: Path) -> Callable[[], dict[End, Driver]]:
    """Builds both drivers of that tree, as it is then, for the lab kernel."""
    lab = get_kernel(LAB, context)

    def drivers() -> dict[End, Driver]:
        digest = hashlib.sha256((drivers_tree / FRONT).read_bytes()).hexdigest()
        tree = Tree(drivers_tree, "6.1.192", digest, "")
        kernel = replace(lab, flavour="tree", tree=tree)
        return {end: get_driver(end, "patched", kernel, context) for end in ENDS}

    return drivers


@pytest.mark.stack(kernel=LAB)
def test_changed_driver_is_built_and_loaded(
    stack: Stack, cache: Cache, build: Callable[[], dict[End, Driver]], drivers_tree: Path
) -> None:
    before = build()
    source = drivers_tree / FRONT
    text = source.read_text()
    source.write_text(text + "\nstatic int __used changed(void) { return 1; }\n")
    after = build()
    assert after["front"].build_id != before["front"].build_id
    assert after["back"].build_id == before["back"].build_id
    assert {driver.made_of for driver in after.values()} == {
        f"tree {drivers_tree} (Linux 6.1.0-rc5)"
    }
    ring = connect(stack, after, cache, pages=16)
    assert ring.pages == 16


def test_driver_that_does_not_compile_shows_the_compilers_lines(
    build: Callable[[], dict[End, Driver]], drivers_tree: Path
) -> None:
    source = drivers_tree / FRONT
    source.write_text(source.read_text() + "\nint broken(void) { return nothing; }\n")
    with pytest.raises(InputError) as refused:
        build()
    assert any("xen-blkfront.c" in line and "nothing" in line for line in refused.value.lines)


@pytest.fixture
def linux(context: BuildContext, tmp_path: Path) -> Iterator[Path]:
    """A git work tree of the lab kernel's own source."""
    wanted = spec(LAB)
    tree = tmp_path / "linux"
    unpack_source(source_deb(wanted, context), tree)
    for folder in wanted.patches:
        for patch in kbuild.series(folder):
            apply_patch(patch, tree)
    (tree / ".gitignore").write_text("*.o\n")  # that of the package ignores everything
    commit(tree)
    yield tree
    shutil.rmtree(tree)  # 1.5 GB: pytest keeps the directories of three runs


@pytest.fixture
def home(warm: Warm) -> Iterator[Path]:
    """A cache with the kernels that have names, whose copy of the tree goes with the test."""
    made = warm.home()
    # What was compiled before, for lab kernels too, need not be compiled again.
    (made / "emu-xen-block/store/ccache").symlink_to(warm.source / "store/ccache")
    yield made
    shutil.rmtree(made)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_kernel_of_a_tree(linux: Path, home: Path, warm: Warm, context: BuildContext) -> None:
    """Interrupted, twice at once, unchanged, a changed driver, another change, an error."""

    def run(*more: str) -> tuple[dict[str, Any], EmuCommand]:
        command = warm.run(home, "--tree", str(linux), "--json", *more)
        command.succeed(3600)
        return json.loads(command.stdout), command

    before = sorted(path.lstat().st_mtime_ns for path in linux.rglob("*"))
    store = home / "emu-xen-block/store"
    interrupted = warm.run(home, "--tree", str(linux))
    interrupted.wait_until(lambda: any(store.glob(f"tree-*/{LATER}")), "the first objects", 1800)
    interrupted.interrupt(signal.SIGINT)
    interrupted.fail(EXIT_INTERRUPTED)
    interrupted.assert_nothing_runs()
    (kept,) = store.glob(f"tree-*/{FORK}")
    built = kept.stat().st_mtime_ns

    other = warm.run(home, "--tree", str(linux), "--json")
    first, command = run()
    other.succeed(600)
    waited = [one for one in (other, command) if "waiting for pid" in one.stderr]
    assert len(waited) == 1, "one builds, the other waits for it"
    assert kept.stat().st_mtime_ns == built, "what an interrupted build has made is kept"
    tree = first["trees"]["dom0"]
    assert first["dom0_kernel"] == f"6.1.192-tree-{tree['kernel_digest'][:8]}"
    assert (first["domu"]["kernel"], first["trees"]["domu"]) == (first["dom0_kernel"], tree)
    assert (tree["commit"], tree["dirty"]) == (git(linux, "rev-parse", "HEAD"), [])
    made_of = f"tree {linux} ({tree['commit'][:12]})"
    assert {first["drivers"][end]["made_of"] for end in ENDS} == {made_of}
    assert sorted(path.lstat().st_mtime_ns for path in linux.rglob("*")) == before
    _same_as_the_lab_kernel(home, context)

    _, second = run()
    assert "building" not in second.stderr

    (linux / FRONT).write_text((linux / FRONT).read_text() + "static int __used changed;\n")
    third, command = run()
    assert "building the drivers for" in command.stderr
    assert f"building {linux}" not in command.stderr
    assert third["dom0_kernel"] == first["dom0_kernel"]
    assert third["trees"]["dom0"]["dirty"] == [FRONT]
    assert third["drivers"]["front"]["made_of"] == f"{made_of[:-1]}, with changes)"
    assert third["drivers"]["front"]["build_id"] != first["drivers"]["front"]["build_id"]

    changed = linux / "drivers/xen/grant-table.c"
    text = changed.read_text()
    changed.write_text(text + "static int __used changed;\n")
    fourth, command = run()
    assert f"building {linux}" in command.stderr
    assert fourth["dom0_kernel"] != first["dom0_kernel"]
    assert kept.stat().st_mtime_ns == built, "only what depends on the change is built"

    changed.write_text(text + "static int broken(void) { return nothing; }\n")
    command = warm.run(home, "--tree", str(linux))
    errors = command.fail(EXIT_INPUT, 600)
    assert f"{linux} cannot be built" in errors
    assert "drivers/xen/grant-table.c" in errors

    changed.write_text(text)
    mixed, command = run("--domu-kernel", "debian-6.1")
    assert f"building {linux}" not in command.stderr, "the kernel of before is in the cache"
    assert mixed["dom0_kernel"] == first["dom0_kernel"]
    assert (mixed["trees"]["domu"], mixed["domu"]["kernel_name"]) == (None, "debian-6.1")


def _same_as_the_lab_kernel(home: Path, context: BuildContext) -> None:
    """The tree is the lab kernel's source: nothing but the name differs."""
    (root,) = (home / "emu-xen-block/kernel-tree").glob("[0-9a-f]*[0-9a-f]")
    lab: Kernel = get_kernel(LAB, context)
    assert (root / "Module.symvers").read_bytes() == lab.symvers.read_bytes()
    own, labs = read_config((root / "config").read_text()), read_config(lab.config.read_text())
    assert {name for name in own.keys() | labs.keys() if own.get(name) != labs.get(name)} == {
        "CONFIG_LOCALVERSION"
    }
