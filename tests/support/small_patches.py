"""Small patches to the drivers, as text and as mail."""

from __future__ import annotations

import difflib
from pathlib import Path

FRONT = "drivers/block/xen-blkfront.c"
BACK = "drivers/block/xen-blkback/blkback.c"


def change(name: str = FRONT, number: int = 1) -> str:
    """A diff that puts a comment behind the first line of a file."""
    return (
        f"--- a/{name}\n+++ b/{name}\n@@ -1,1 +1,2 @@\n /* {name} */\n+/* changed by {number} */\n"
    )


def mail(subject: str, diff: str, *more: str) -> str:
    """A patch as git format-patch writes it; `more` are further headers."""
    return "\n".join(
        [
            "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001",
            "From: A Developer <developer@localhost>",
            "Date: Fri, 27 Nov 2026 12:00:00 +0000",
            f"Subject: {subject}",
            *more,
            "",
            "It is to be another.",
            "---",
            " a file | 1 +",
            "",
            diff.rstrip("\n"),
            "-- ",
            "2.47.3",
            "",
            "",
        ]
    )


def edited(source: Path, name: str, old: str, new: str) -> str:
    """A diff that changes the first `old` of a file of the drivers' source to `new`."""
    before = (source / name).read_text()
    assert old in before
    after = before.replace(old, new, 1)
    old_rows, new_rows = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(difflib.unified_diff(old_rows, new_rows, f"a/{name}", f"b/{name}"))
