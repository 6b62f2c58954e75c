"""Small patches to the drivers, as text and as mail."""

from __future__ import annotations

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
