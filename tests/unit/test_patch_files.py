"""Patches as people have them: mails, mailboxes, directories, and what is none."""

from __future__ import annotations

import base64
import gzip
import hashlib
import quopri
from collections.abc import Callable
from pathlib import Path

import pytest
from small_patches import BACK, FRONT, change, mail

from emu.errors import InputError
from emu.images.driver_patches import driver_patches, ends_of, in_kernel
from emu.images.patch_files import Patch, read_patch, read_patches
from emu.images.patched import PatchedDrivers

Read = Callable[[Path], tuple[Patch, ...]]
NAMED = "From 89ab Mon Sep 17 00:00:00 2001\n"


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def read(notes: list[str]) -> Read:
    return lambda path: read_patches([path], notes.append, in_kernel)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def subjects(patches: tuple[Patch, ...]) -> list[str]:
    return [one.subject for one in patches]


def mbox(*order: int, version: str = "", count: int = 3) -> str:
    """A mailbox with patches in this order; 0 is the cover letter."""
    return "".join(
        mail(f"[PATCH{version} {n}/{count}] front: change {n}", change(number=n) if n else "text")
        for n in order
    )


def test_plain_diff(read: Read, tmp_path: Path) -> None:
    path = written(tmp_path / "fix.diff", f"Change a line.\n\n{change()}")
    (patch,) = read(path)
    assert (patch.file, patch.subject, patch.names) == ("fix.diff", "Change a line.", (FRONT,))
    assert patch.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(patch) == "fix.diff (Change a line.)"
    (bare,) = read(written(tmp_path / "bare.diff", change()))
    assert str(bare) == "bare.diff"
    assert bare.key == patch.key  # whatever is said about it


def test_git_show(read: Read, tmp_path: Path) -> None:
    text = (
        f"commit 0123456789abcdef\nAuthor: A <a@b>\nDate:   now\n\n    front: change\n\n{change()}"
    )
    assert subjects(read(written(tmp_path / "shown", text))) == ["front: change"]


def test_mailbox_is_put_in_order_without_its_cover_letter(
    read: Read, notes: list[str], tmp_path: Path
) -> None:
    patches = read(written(tmp_path / "series.mbox", mbox(3, 0, 1, 2)))
    assert subjects(patches) == ["front: change 1", "front: change 2", "front: change 3"]
    assert patches[0].file == "series.mbox, mail 3"
    assert notes == ["series.mbox, mail 2: no diff (a cover letter), left out"]


def test_thread_of_a_list_archive(read: Read, notes: list[str], tmp_path: Path) -> None:
    """Gzipped, with replies, and with the version before."""
    reply = mail("Re: [PATCH v2 1/2] front: change 1", f"> {change()}\nLike this?\n{change(BACK)}")
    html = mail("Re: [PATCH v2 2/2] front: change 2", "<p>ok", "Content-Type: text/html")
    series = mbox(1, 2, version=" v1", count=2) + mbox(0, 2, 1, version=" v2", count=2)
    text = series + reply + html
    thread = written(tmp_path / "t.mbox.gz", gzip.compress(text.encode()))
    patches = read(thread)
    assert [one.file for one in patches] == ["t.mbox.gz, mail 5", "t.mbox.gz, mail 4"]
    assert f"{thread}: 2 replies left out" in notes
    assert f"{thread}: v2 is taken, v1 left out" in notes


def test_missing_and_doubled_numbers(read: Read, notes: list[str], tmp_path: Path) -> None:
    read(written(tmp_path / "some.mbox", mbox(1, 3)))
    assert notes == [f"{tmp_path}/some.mbox: patch 2/3 of the series is not among them"]
    assert len(read(written(tmp_path / "same.mbox", mbox(1, 2, 2, 3)))) == 3
    two = mbox(1) + mail("[PATCH 1/3] front: another", change(number=9))
    with pytest.raises(InputError, match=r"has two patches 1/3: two\.mbox, mail 1 and two"):
        read(written(tmp_path / "two.mbox", two))


def test_directory_of_format_patch(read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for number, name in enumerate(("0000-cover-letter", "0001-one", "0002-two", "0003-three")):
        written(folder / f"{name}.patch", mbox(number))
    written(folder / "README", "no patch\n")
    assert [one.file for one in read(folder)] == [
        "0001-one.patch",
        "0002-two.patch",
        "0003-three.patch",
    ]


def test_maildir_of_b4(read: Read, tmp_path: Path) -> None:
    for name in ("cur", "new", "tmp"):
        (tmp_path / "b4" / name).mkdir(parents=True)
    written(tmp_path / "b4/new/0002", mbox(2, count=2).partition("\n")[2])
    written(tmp_path / "b4/cur/0001:2,S", mbox(1, count=2).partition("\n")[2])
    assert subjects(read(tmp_path / "b4")) == ["front: change 1", "front: change 2"]


@pytest.mark.parametrize("encoding", ["quoted-printable", "base64", "8bit"])
def test_encodings_of_mails(read: Read, tmp_path: Path, encoding: str) -> None:
    diff = change().replace("changed by", "=3D größer as").encode()
    coded = {
        "quoted-printable": quopri.encodestring(diff),
        "base64": base64.encodebytes(diff),
        "8bit": diff.replace(b"\n", b"\r\n"),
    }[encoding]
    head = (
        f"{NAMED}From: a <a@b>\nSubject: =?utf-8?q?front=3A_gr=C3=B6=C3=9Fer?=\nMIME-Version: 1.0\n"
        f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}\n\n"
    )
    (patch,) = read(written(tmp_path / "mail", head.encode() + coded))
    assert patch.subject == "front: größer"
    assert patch.diffs[0].hunks[0].lines[1] == "+/* =3D größer as 1 */"


def test_attached_patch(read: Read, tmp_path: Path) -> None:
    attached = base64.b64encode(change().encode()).decode()
    text = (
        "From: a <a@b>\nSubject: a fix\nMIME-Version: 1.0\n"
        'Content-Type: multipart/mixed; boundary="x"\n\n--x\nContent-Type: text/plain\n\n'
        "I attach it.\n--x\nContent-Type: application/octet-stream\n"
        'Content-Disposition: attachment; filename="fix.patch"\n'
        f"Content-Transfer-Encoding: base64\n\n{attached}\n--x--\n"
    )
    (patch,) = read(written(tmp_path / "mail.eml", text))
    assert (patch.subject, patch.names) == ("a fix", (FRONT,))


def test_line_of_a_message_that_begins_with_from_is_no_mail(read: Read, tmp_path: Path) -> None:
    text = mail("[PATCH] front: change", change()).replace("It is", "\nFrom Xen 4.20 on it is")
    assert len(read(written(tmp_path / "one.mbox", text))) == 1


HTML = "<!DOCTYPE html>\n<html><body><pre>diff --git a/x b/x\n"
WRAPPED = change().replace("/* changed by 1 */", "/* changed by\n1 */")
CONTEXT_DIFF = f"*** a/{FRONT}\tnow\n--- b/{FRONT}\tnow\n***************\n"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "bad.patch is empty", None),
        ("only words\n", "bad.patch holds no patch", "git format-patch"),
        (b"\x7fELF\0\0", "bad.patch is a binary file", None),
        (HTML, "bad.patch is a web page", "raw"),
        (WRAPPED, f"line 6: hunk 1 of {FRONT} has a line behind it that is none", "mail program"),
        (WRAPPED.replace(" /*", "/*", 1), f"line 4: hunk 1 of {FRONT} has a line that", "mail"),
        (change()[: change().index("+/*")], f"hunk 1 of {FRONT} ends 1 lines early", "mail"),
        (f"{change()}+/* one more */\n", f"hunk 1 of {FRONT} has more lines than", "mail"),
        ("@@ -1 +1 @@\n-a\n+b\n", "a hunk without the lines", "mail"),
        (CONTEXT_DIFF, "a context diff", "diff -u"),
        (mail("[PATCH 1/2] x", "text"), "bad.patch holds no patch", "git format-patch"),
        (mail("Re: [PATCH] x", "> " + change().replace("\n", "\n> ")), "is quoted", "not a reply"),
        (mbox(0), "bad.patch holds no patch", None),
        (
            f"diff --git a/{FRONT}.bin b/{FRONT}.bin\nGIT binary patch\nliteral 1\n",
            "is a binary file",
            "only text",
        ),
    ],
)
def test_what_is_no_patch_is_refused_with_a_reason(
    read: Read, tmp_path: Path, content: str | bytes, message: str, hint: str | None
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read(written(tmp_path / "bad.patch", content))
    assert "bad.patch" in refused.value.message
    assert (hint or "") in (refused.value.hint or "")


def test_what_is_not_there_is_refused(read: Read, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"there is no driver patch {tmp_path}/gone"):
        read(tmp_path / "gone")
    with pytest.raises(InputError, match=f"the directory {tmp_path} holds no patches"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"series\.mbox holds 3 patches, one was exp"):
        read_patch(written(tmp_path / "series.mbox", mbox(1, 2, 3)))
    missing = written(tmp_path / "part.mbox", mbox(1) + mail("[PATCH 2/3] x", "lost"))
    with pytest.raises(InputError, match=r"mail 2 \(x\) is patch 2/3, and has no diff"):
        read(missing)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"a/{FRONT}", FRONT),
        (FRONT, FRONT),
        (f"linux-7.3.orig/{FRONT}", FRONT),
        (f"/usr/src/linux/{FRONT}.orig", FRONT),
        ("a/xen-blkfront.c", FRONT),
        ("xen-blkback/blkback.c", BACK),
        ("b/blkback.c", BACK),
        ("a/include/xen/interface/io/blkif.h", "include/xen/interface/io/blkif.h"),
        ("a/drivers/xen/xenbus/xenbus_client.c", "drivers/xen/xenbus/xenbus_client.c"),
        ("linux/MAINTAINERS", "MAINTAINERS"),
    ],
)
def test_file_is_found_wherever_the_diff_was_made(name: str, expected: str) -> None:
    assert in_kernel(name) == expected


def test_ends_and_what_is_left_out(notes: list[str], tmp_path: Path) -> None:
    documents = change("Documentation/ABI/testing/sysfs-driver-xen-blkback") + change("MAINTAINERS")
    asked = PatchedDrivers((written(tmp_path / "1.patch", change() + documents),))
    patches = driver_patches(asked, "", notes.append)
    assert [one.names for one in patches] == [(FRONT,)]
    assert notes == [
        "1.patch: Documentation/ABI/testing/sysfs-driver-xen-blkback, MAINTAINERS left out "
        "(no driver)"
    ]
    assert ends_of(patches) == ("front",)
    for name, ends in ((BACK, ("back",)), ("include/xen/interface/io/blkif.h", ("front", "back"))):
        asked = PatchedDrivers((written(tmp_path / "2.patch", change(name)),))
        assert ends_of(driver_patches(asked, "", notes.append)) == ends


def test_patch_of_other_files_is_refused(notes: list[str], tmp_path: Path) -> None:
    other = change() + change("drivers/xen/xenbus/xenbus_client.c")
    asked = PatchedDrivers((written(tmp_path / "1.patch", other),))
    with pytest.raises(InputError, match=r"1\.patch changes drivers/xen/xenbus/xenbus_cl") as no:
        driver_patches(asked, "", notes.append)
    assert "--tree" in (no.value.hint or "")
    asked = PatchedDrivers((written(tmp_path / "1.patch", change("MAINTAINERS")),))
    with pytest.raises(InputError, match=r"no patch of .* changes a driver"):
        driver_patches(asked, "", notes.append)


def test_variants_of_a_directory_go_by_the_kernel(notes: list[str], tmp_path: Path) -> None:
    (tmp_path / "6.1").mkdir()
    written(tmp_path / "1.patch", change(number=1))
    written(tmp_path / "2.patch", change(number=2))
    written(tmp_path / "6.1/2.patch", change(number=3))

    def numbers(version: str) -> list[str]:
        patches = driver_patches(PatchedDrivers((tmp_path,)), version, notes.append)
        return [one.diffs[0].hunks[0].lines[1][-4:-3] for one in patches]

    assert (numbers("7.3"), numbers("6.1")) == (["1", "2"], ["1", "3"])
