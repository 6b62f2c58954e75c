"""Our patches as mail: the form of git format-patch, context, messages, Fixes, no sign-off."""

from __future__ import annotations

import email
import email.policy
import re
from pathlib import Path

import pytest

from emu import paths
from emu.images import kbuild
from emu.images.kernel_specs import own_series

PATCHES = sorted(paths.guest_images().glob("patches/**/*.patch"))
VARIANTS = [path for path in PATCHES if path.parent.parent == own_series()]
OTHERS = sorted(Path("qemu-patches").rglob("*.patch")) + sorted(Path("tests").rglob("*.patch"))

CONTEXT = 3
FIXES = re.compile(r'Fixes: [0-9a-f]{12} \("[^"]+"\)')
COMMIT = re.compile(r'\bcommit ([0-9a-f]{5,40})\b(?: \("([^"]+)"\))?')
NOTE = re.compile(r"\[ .* \]", re.DOTALL)
"""What differs in a variant, as backports to stable kernels say it: a paragraph in brackets."""
HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*\n((?:[ +\-\\].*\n|\n)+)", re.MULTILINE)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name[:4]}"


def message(path: Path) -> tuple[str, list[str]]:
    """The subject, and the paragraphs of the commit's message."""
    mail = email.message_from_string(
        path.read_text().partition("\n")[2], policy=email.policy.default
    )
    text, separator, _ = mail.get_content().partition("\n---\n")
    assert separator, "no line --- between the message and the change"
    return mail["Subject"].removeprefix("[PATCH] "), text.strip().split("\n\n")


def test_there_are_patches() -> None:
    assert len(PATCHES) > 40
    assert {path.parent.name for path in VARIANTS} == {"6.1", "6.12", "7.2"}


@pytest.mark.parametrize("path", [*PATCHES, *OTHERS], ids=name_of)
def test_patch_is_left_to_be_signed_by_whoever_sends_it(path: Path) -> None:
    assert not re.search("^signed-off-by:", path.read_text(), re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("path", PATCHES, ids=name_of)
def test_patch_is_as_git_makes_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: ")
    subject, paragraphs = message(path)
    assert re.match(r"[a-z][\w/, -]*: [a-z]", subject)
    assert re.sub(r"[^A-Za-z0-9._]+", "-", subject).startswith(path.stem[5:].rstrip("-"))
    assert all(paragraphs)
    assert len(re.findall(r"^index [0-9a-f]{7}\.\.[0-9a-f]{7} 100644$", text, re.MULTILINE)) == len(
        re.findall(r"^diff --git a/(\S+) b/\1$", text, re.MULTILINE)
    )


@pytest.mark.parametrize("path", PATCHES, ids=name_of)
def test_change_has_three_lines_of_context(path: Path) -> None:
    """Fewer at the beginning of a file, or at its end, only."""
    for change in re.split(r"^diff --git ", path.read_text(), flags=re.MULTILINE)[1:]:
        hunks = HUNK.findall(change)
        assert hunks
        for number, (start, body) in enumerate(hunks):
            marks = "".join(line[:1] or " " for line in body.splitlines())
            before = len(marks) - len(marks.lstrip(" "))
            after = len(marks) - len(marks.rstrip(" "))
            assert before == min(CONTEXT, int(start) - 1), f"hunk at {start}: {before} before"
            last = number == len(hunks) - 1
            assert after == CONTEXT or (last and after < CONTEXT), f"hunk at {start}: {after} after"


@pytest.mark.parametrize("path", VARIANTS, ids=name_of)
def test_variant_has_the_message_of_the_patch_and_notes(path: Path) -> None:
    subject, paragraphs = message(path)
    assert message(own_series() / path.name) == (
        subject, [one for one in paragraphs if not NOTE.fullmatch(one)],
    )  # fmt: skip


def test_patch_of_the_newest_kernel_has_no_notes() -> None:
    for path in kbuild.series(own_series()):
        assert not [one for one in message(path)[1] if one.startswith("[")], path.name


@pytest.mark.parametrize("path", PATCHES, ids=name_of)
def test_commits_are_named_in_full(path: Path) -> None:
    """Twelve digits and the title; Fixes: unfolded, in the last paragraph, and in the text."""
    _, paragraphs = message(path)
    lines = [line for one in paragraphs for line in one.splitlines()]
    tags = [line for line in lines if re.match(r"\s*fixes\b.*[0-9a-f]{7}", line, re.IGNORECASE)]
    assert [tag for tag in tags if not FIXES.fullmatch(tag)] == []
    assert tags in ([], paragraphs[-1].splitlines())
    titles = {tag[7:19]: tag[22:-2] for tag in tags}
    for digits, title in COMMIT.findall(" ".join(" ".join(lines).split())):
        assert (len(digits), bool(title)) == (12, True), f"commit {digits} without its title"
        assert titles.get(digits, title) == title
