"""Patches as mail: what `git am` makes of them in a repository of its own."""

from __future__ import annotations

import email
import email.header
import email.policy
import os
import re
from pathlib import Path

from emu.errors import InputError
from emu.runprogram import Output, run

_HEADERS = ("From", "Date", "Subject")
_PREFIX = re.compile(r"^\s*\[[^\]]*PATCH[^\]]*\]\s*")
_NAME, _MAIL = "Nobody", "nobody@localhost"


def subject(patch: Path) -> str:
    """The subject of a patch without "[PATCH 1/2]"; the file's name if it has none."""
    return _PREFIX.sub("", _read(patch).get("Subject", "")).strip() or patch.name


class Repository:
    """A throw-away repository whose work tree is `tree` and whose files lie in `place`.

    Nothing of the user's configuration, hooks or identity takes part.
    """

    def __init__(self, tree: Path, place: Path) -> None:
        self._tree = tree
        self._environ = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(place), "LC_ALL": "C",
            "GIT_DIR": str(place / "git"), "GIT_WORK_TREE": str(tree),
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_COMMITTER_NAME": _NAME, "GIT_COMMITTER_EMAIL": _MAIL,
            "GIT_AUTHOR_NAME": _NAME, "GIT_AUTHOR_EMAIL": _MAIL,
        }  # fmt: skip
        self._must("init", "--quiet", "--template=", "--initial-branch=main")
        self.commit("the kernel's source")

    def commit(self, subject: str) -> None:
        """Commit the work tree as it is."""
        self._must("add", "--all", "--force")
        self._must("commit", "--quiet", "--allow-empty", "-m", subject)

    def tree_id(self) -> str:
        """git's name of the content of the work tree."""
        self._must("add", "--all", "--force")
        return self._must("write-tree").strip()

    def am(self, patch: Path) -> None:
        """Apply one mail to what was committed last, and throw away what changed since.

        Raises InputError with git's output, or if a header is missing; then the work tree is
        as it was committed last.
        """
        self._must("reset", "--quiet", "--hard")
        mail = _read(patch)
        missing = [name for name in _HEADERS if not mail.get(name)]
        if missing:
            raise InputError(
                f"{patch.name} is no mail: it has no {', '.join(missing)}",
                hint="make patches with git format-patch",
            )
        done = self._git("am", "--quiet", str(patch.absolute()))
        if done.status:
            self._git("am", "--abort")
            self._must("reset", "--quiet", "--hard")
            output = [line for line in done.errors.splitlines() if not line.startswith("hint:")]
            raise InputError(f"git am refuses {patch.name}", lines=output[:5])

    def _must(self, *arguments: str) -> str:
        return self._git(*arguments, failed=f"git {arguments[0]} failed").text

    def _git(self, *arguments: str, failed: str | None = None) -> Output:
        return run(["git", *arguments], failed, lines=5, cwd=self._tree, env=self._environ)


def _read(patch: Path) -> email.message.EmailMessage:
    """The mail in a file; git format-patch puts an mbox line before it."""
    text = patch.read_bytes()
    if text.startswith(b"From "):
        text = text.partition(b"\n")[2]
    return email.message_from_bytes(text, policy=email.policy.default)
