"""What git says of a tree that somebody gave us, without writing anything into it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from emu.runprogram import run

_LIMIT = 60.0
"""Seconds for a look at a work tree; a kernel's takes 1 to 2 with a cold cache."""


@dataclass(frozen=True)
class GitState:
    """A work tree: the commit that is checked out, and whether files differ from it."""

    commit: str
    dirty: bool

    def __str__(self) -> str:
        return f"{self.commit[:12]}{', with changes' if self.dirty else ''}"


def git_state(tree: Path, *names: str) -> GitState | None:
    """The state of a git work tree, `dirty` by these files alone (none: by all that it tracks).

    None where `tree` is no work tree of git's, or git is not there or refuses it (one of
    another user's).
    """
    if shutil.which("git") is None:
        return None
    commit = _git(tree, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    # With names also files that git does not know yet: they are built like the others.
    others = "normal" if names else "no"
    changed = _git(tree, "status", "--porcelain", f"--untracked-files={others}", "--", *names)
    return GitState(commit, bool(changed))


def _git(tree: Path, *arguments: str) -> str:
    """What git prints; nothing where it refuses. No index is refreshed, no hook runs."""
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        environ.pop(name, None)
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(tree), *arguments]
    done = run(command, env=environ, limit=_LIMIT)
    return done.text.strip() if done.status == 0 else ""
