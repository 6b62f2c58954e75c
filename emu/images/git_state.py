"""What git says of a tree that somebody gave us, without writing anything into it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from emu.runprogram import run


@dataclass(frozen=True)
class GitState:
    """A work tree: the commit that is checked out, and whether files differ from it."""

    commit: str
    dirty: bool

    def __str__(self) -> str:
        return f"{self.commit[:12]}{', with changes' if self.dirty else ''}"


class WorkTree:
    """A directory that may be a work tree of git's. No index is refreshed, no hook runs.

    `works` where it is one with a commit, of which `path` is the top or a directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.works = False
        if shutil.which("git") is not None:
            # A directory that another repository merely contains has nothing tracked in it.
            tracked = self.ask("ls-files", "-z", "--", "Makefile", "Kbuild")
            self.works = bool(tracked and self.ask("rev-parse", "--verify", "--quiet", "HEAD"))

    def ask(self, *arguments: str) -> str:
        """What git prints; nothing where it refuses."""
        environ = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
        environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        # The tree may be another user's: we build it, so git may read it.
        options = ("core.fsmonitor=false", "safe.directory=*", "core.quotePath=false")
        command = ["git", *(word for one in options for word in ("-c", one))]
        done = run([*command, "-C", str(self.path), *arguments], env=environ)
        return os.fsdecode(done.stdout) if done.status == 0 else ""


def git_state(tree: Path, *names: str) -> GitState | None:
    """The state of a git work tree, `dirty` by these files alone, also those that git does not
    know yet: they are built like the others.

    None where `tree` is no work tree of git's, or git is not there.
    """
    git = WorkTree(tree)
    if not git.works:
        return None
    changed = git.ask("status", "--porcelain", "--untracked-files=normal", "--", *names)
    return GitState(git.ask("rev-parse", "HEAD").strip(), bool(changed.strip()))
