"""Checking a series: messages of the compiler, sparse, checkpatch and git."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_modules import SOURCE, patch_of

from emu import cli, paths
from emu.errors import EXIT_INPUT, InputError, RigError
from emu.images import kbuild
from emu.images.compiler_messages import (
    Message,
    messages_as_json,
    messages_of_json,
    new_messages,
    read_messages,
)
from emu.images.kernel_specs import own_series
from emu.series import checkpatch, git_am
from emu.series.checkpatch import Allowed

TRANSCRIPTS = Path(__file__).parent / "transcripts"
BACK = "drivers/block/xen-blkback"


@pytest.fixture
def output() -> list[str]:
    """make W=1 C=2 --output-sync=target of a spoilt xenbus.c and common.h (6.1)."""
    return (TRANSCRIPTS / "drivers-w1-sparse.txt").read_text().splitlines()


@pytest.fixture
def messages(output: list[str]) -> list[Message]:
    return read_messages(output)


# -- the compiler and sparse


def test_messages_are_the_compilers_or_sparses(messages: list[Message]) -> None:
    assert [(one.tool, one.file, one.line, one.text.split(" [-W")[0]) for one in messages] == [
        ("build", f"{BACK}/common.h", 497, "'never_used' defined but not used"),
        ("build", f"{BACK}/xenbus.c", 1199, "unused variable 'n'"),
        ("build", f"{BACK}/xenbus.c", 1203, "no previous prototype for 'noproto'"),
        ("build", f"{BACK}/common.h", 497, "'never_used' defined but not used"),
        (
            "build",
            f"{BACK}/xenbus.c",
            1209,
            "the frame size of 3080 bytes is larger than 2048 bytes",
        ),
        (
            "sparse",
            f"{BACK}/xenbus.c",
            1196,
            "incorrect type in initializer (different address spaces)",
        ),
        ("sparse", f"{BACK}/xenbus.c", 1199, "cast removes address space '__user' of expression"),
        ("sparse", f"{BACK}/xenbus.c", 1208, "Using plain integer as NULL pointer"),
        (
            "sparse",
            f"{BACK}/xenbus.c",
            1203,
            "symbol 'noproto' was not declared. Should it be static?",
        ),
    ]


def test_message_has_all_its_lines_and_no_others(messages: list[Message]) -> None:
    header, unused = messages[0], messages[1]
    assert header.lines[0] == f"In file included from {BACK}/blkback.c:53:"
    assert unused.lines[0] == f"{BACK}/xenbus.c: In function 'reads':"
    assert unused.lines[-1] == "      |             ^"
    assert len(messages[5].lines) == 3
    assert not [row for one in messages for row in one.lines if "BTF" in row or "  CHECK" in row]


def test_old_message_is_not_new_though_lines_have_moved(messages: list[Message]) -> None:
    moved = [
        replace(
            one,
            line=None if one.line is None else one.line + 40,
            lines=tuple(
                re.sub(r":(\d+):", lambda at: f":{int(at[1]) + 40}:", row) for row in one.lines
            ),
        )
        for one in messages
    ]
    assert moved[1].lines != messages[1].lines
    assert new_messages(messages, moved) == []
    assert new_messages([], messages) == messages


def test_repeated_message_is_new(messages: list[Message]) -> None:
    """The header's warning comes once for each file that includes it."""
    assert messages[0].key == messages[3].key
    assert new_messages(messages[:1], messages[:4]) == messages[1:4]


def test_sparse_names_types_in_the_following_lines(messages: list[Message]) -> None:
    other = replace(
        messages[5], lines=tuple(row.replace("there", "here") for row in messages[5].lines)
    )
    assert new_messages([messages[5]], [other]) == [other]


def test_messages_survive_the_cache(messages: list[Message]) -> None:
    assert list(messages_of_json(messages_as_json(messages))) == messages


# -- checkpatch


@pytest.fixture
def styled() -> list[str]:
    """checkpatch.pl --strict --show-types of a patch with bad style (6.12's script)."""
    return (TRANSCRIPTS / "checkpatch-strict.txt").read_text().splitlines()


def test_remarks_of_checkpatch_are_parsed(styled: list[str]) -> None:
    style = checkpatch.judge(styled, (), "0001.patch")
    assert style.total == "total: 4 errors, 2 warnings, 1 checks, 12 lines checked"
    front = "drivers/block/xen-blkfront.c"
    assert [(one.level, one.type, one.file) for one in style.open] == [
        ("WARNING", "TYPO_SPELLING", "-"),
        ("ERROR", "OPEN_BRACE", front),
        ("ERROR", "SPACING", front),
        ("CHECK", "CAMELCASE", front),
        ("ERROR", "CODE_INDENT", front),
        ("WARNING", "LEADING_SPACE", front),
        ("ERROR", "MISSING_SIGN_OFF", "-"),
    ]
    assert "+	if(dev->state == XenbusStateClosed)" in style.open[2].lines


def test_allowed_remarks_are_excused_and_no_others(styled: list[str]) -> None:
    excuse = Allowed("CAMELCASE", "drivers/block/xen-blkfront.c", "<XenbusStateClosed>", "an enum")
    style = checkpatch.judge(styled, (excuse,), "0001.patch")
    assert [one.type for one in style.excused] == ["CAMELCASE"]
    assert len(style.open) == 6
    others = (
        replace(excuse, file="drivers/block/xen-blkback/xenbus.c"),
        replace(excuse, words="<XenbusStateClosing>"),
        replace(excuse, type="SPACING"),
    )
    assert len(checkpatch.judge(styled, others, "0001.patch").open) == 7


def test_inconsistent_output_is_an_error(styled: list[str]) -> None:
    for part in (styled[:-20], styled[8:], []):
        with pytest.raises(
            RigError, match=r"the output of checkpatch on 0001\.patch can't be read"
        ):
            checkpatch.judge(part, (), "0001.patch")


def test_allowed_remark_needs_a_reason(tmp_path: Path) -> None:
    assert checkpatch.read_allowed(tmp_path) == ()
    (tmp_path / checkpatch.ALLOWED).write_text("# all\n\nSPACING  a.c  some words  # because\n")
    assert checkpatch.read_allowed(tmp_path) == (
        Allowed("SPACING", "a.c", "some words", "because"),
    )
    for line in ("SPACING a.c words", "SPACING a.c  # why"):
        (tmp_path / checkpatch.ALLOWED).write_text(f"# all\n{line}\n")
        with pytest.raises(InputError, match=f"{checkpatch.ALLOWED}:2 is no allowed remark"):
            checkpatch.read_allowed(tmp_path)


def test_our_series_gives_reasons_for_allowed_remarks() -> None:
    assert all(one.reason for one in checkpatch.read_allowed(own_series()))


# -- patches as mail


def mail_of(patch: Path, *headers: str) -> Path:
    body = patch.read_text().partition("\n\n")[2]
    patch.write_text("".join(f"{header}\n" for header in headers) + f"\n{body}")
    return patch


SENDER, DATE = "From: A B <a@localhost>", "Date: Sun, 22 Nov 2026 12:00:00 +0000"


def test_subject_may_span_several_lines(tmp_path: Path) -> None:
    patch = tmp_path / "0001-x.patch"
    patch.write_text(f"From 0 Mon\n{SENDER}\nSubject: [PATCH v2 1/3] xen/blk: one\n two\n\nwhy\n")
    assert git_am.subject(patch) == "xen/blk: one two"
    patch.write_text("--- a/x\n")
    assert git_am.subject(patch) == "0001-x.patch"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "drivers").mkdir(parents=True)
    (tree / "drivers/x.c").write_text(SOURCE)
    return tree


def test_git_am_ignores_the_users_identity(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text("[am]\n\tnosuch\n[core]\n\tautocrlf = input\n[broken")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    patch = patch_of(tmp_path, "drivers/x.c", SOURCE, SOURCE.replace("line 20\n", "changed\n"))
    repository = git_am.Repository(tree, tmp_path)
    before = repository.tree_id()
    repository.am(mail_of(patch, SENDER, DATE, "Subject: [PATCH] a change"))
    assert "changed\n" in (tree / "drivers/x.c").read_text()
    assert repository.tree_id() != before
    assert [path.name for path in tree.rglob("*") if path.is_file()] == ["x.c"]


def test_patch_that_is_no_mail_is_refused(tree: Path, tmp_path: Path) -> None:
    patch = patch_of(tmp_path, "drivers/x.c", SOURCE, SOURCE.replace("line 20\n", "changed\n"))
    repository = git_am.Repository(tree, tmp_path)
    with pytest.raises(InputError, match="is no mail: it has no From, Date"):
        repository.am(patch)
    assert (tree / "drivers/x.c").read_text() == SOURCE


def test_failed_git_am_leaves_the_tree_unchanged(tree: Path, tmp_path: Path) -> None:
    (tree / "drivers/x.c").write_text(SOURCE.replace("line 21\n", "other\n"))
    patch = patch_of(tmp_path, "drivers/x.c", SOURCE, SOURCE.replace("line 20\n", "changed\n"))
    repository = git_am.Repository(tree, tmp_path)
    before = repository.tree_id()
    with pytest.raises(InputError, match=r"git am refuses 0001-change\.patch") as refused:
        repository.am(mail_of(patch, SENDER, DATE, "Subject: [PATCH] a change"))
    assert any("patch does not apply" in line for line in refused.value.lines)
    assert repository.tree_id() == before
    # And the next mail is taken.
    good = SOURCE.replace("line 21\n", "other\n")
    patch = patch_of(tmp_path, "drivers/x.c", good, good.replace("line 2\n", "changed\n"))
    repository.am(mail_of(patch, SENDER, DATE, "Subject: [PATCH] a change"))
    assert repository.tree_id() != before


# -- what can't be checked


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def say(*arguments: str) -> str:
        assert cli.main(["series", *arguments]) == EXIT_INPUT
        return capsys.readouterr().err

    return say


def test_directory_without_patches_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no directory of patches /nowhere" in refused("--patches", "/nowhere")
    # A cover letter is none.
    (tmp_path / "0000-cover-letter").write_text("Subject: [PATCH 0/1] all of it\n")
    assert f"{tmp_path} holds no patches (*.patch)" in refused("--patches", str(tmp_path))


def test_unknown_kernel_is_refused(refused: Callable[..., str]) -> None:
    assert "there is no kernel 'debian-2.6'" in refused("--kernel", "debian-2.6")


def test_missing_tools_are_named_with_the_command_that_installs_them(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("make", "patch", "git"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    output = refused()
    assert "perl, sparse is missing on this machine" in output
    assert "make setup" in output


def test_our_series_is_where_kernels_toml_says() -> None:
    assert own_series().is_relative_to(paths.guest_images())
    assert all(path.suffix == ".patch" for path in kbuild.series(own_series()))
