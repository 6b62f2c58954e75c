"""Small kernel trees: enough of one for what looks at trees, too little to be built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

MAKEFILE = """\
# SPDX-License-Identifier: GPL-2.0
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 0
EXTRAVERSION = -rc5
NAME = Baby Opossum Posse
"""
FILES = {
    "Makefile": MAKEFILE,
    "Kbuild": "obj-y += kernel/\n",
    "arch/x86/xen/Kconfig": "".join(
        f"config {option}\n\tbool\n\n" for option in ("XEN", "XEN_PV", "XEN_PVH", "XEN_DOM0")
    ),
    "drivers/block/Kconfig": "config XEN_BLKDEV_FRONTEND\n\tbool\n\nconfig XEN_BLKDEV_BACKEND\n",
    "drivers/block/xen-blkfront.c": "int front;\n",
    "drivers/block/xen-blkback/Makefile": "obj-m := xen-blkback.o\n",
    "drivers/block/xen-blkback/blkback.c": "int back;\n",
    "kernel/sched.c": "int sched;\n",
}


def write_files(top: Path, files: Mapping[str, str]) -> None:
    """Write files, by their names below a directory."""
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


def small_tree(path: Path) -> Path:
    """A directory that looks like a kernel tree of 7.3-rc5, with a script and a link."""
    write_files(path, FILES)
    script = path / "scripts/run.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    # As one of Linux's own links is written; pathlib would read it as "run.sh".
    (path / "scripts/again.sh").symlink_to("././run.sh")
    return path


def commit(tree: Path) -> str:
    """Commit all that git does not ignore in `tree`, made a repository if it is none; its hash."""
    if not (tree / ".git").exists():
        git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "a commit")
    return git(tree, "rev-parse", "HEAD")


def git(tree: Path, *arguments: str) -> str:
    """What git prints in `tree`, without the configuration of whoever runs the tests."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=a tester", "-c", "user.email=tester@example.org"]
    done = subprocess.run(
        ["git", *who, "-C", str(tree), *arguments], env=environ, capture_output=True, check=True
    )
    return done.stdout.decode().strip()
