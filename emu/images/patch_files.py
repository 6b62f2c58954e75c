"""Patches as people have them: diffs, mails, mailboxes, folders; read into `Patch`.

    read_patches([Path("0001-fix.patch"), Path("series.mbox"), Path("maildir")], note)

A file is a plain diff, one mail, or an mbox of several (gzipped, too, as archives of lists hand
them out); a directory is a maildir (as b4 makes one), or holds such files. The mails of one
mailbox or folder are put into the order of their [PATCH n/m]; cover letters and replies are left
out, and older versions of a series that is there twice.
"""

from __future__ import annotations

import email
import email.policy
import gzip
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from emu.errors import InputError
from emu.images.diffs import FileDiff, read_diffs, without_prefix

Named = Callable[[str], str]
Note = Callable[[str], None]

STDIN = "standard input"
"""The name of the file that holds what was read there."""
_SUFFIXES = {".patch", ".diff", ".mbox", ".mbx", ".mail", ".eml", ".gz"}
_MAILDIR = ("cur", "new")
_MOST = 64 << 20
"""Bytes of a file that is read; a driver's series has some 100 KiB."""
_FROM_LINE = re.compile(rb"^From \S+.*\d\d:\d\d(?::\d\d)? .*\d{4}[^\n]*\n", re.MULTILINE)
_IS_MAIL = re.compile(rb"\A(?:[A-Za-z][\w-]*:[ \t].*\r?\n(?:[ \t].*\r?\n)*)+")
_TAG = re.compile(r"\[([^\]]*)\]\s*")
_NUMBER = re.compile(r"\b(\d+)/(\d+)\b")
_VERSION = re.compile(r"\bv(\d+)\b", re.IGNORECASE)
_REPLY = re.compile(r"\s*(re|aw|fwd?)\s*:", re.IGNORECASE)
_HTML = re.compile(rb"\s*(?:<!doctype html|<html|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)


@dataclass(frozen=True)
class Patch:
    """One patch: where it came from, what it says it does, and the diffs.

    `file` is the name of its file, with the mail's place where the file has several; `sha256`
    is that of the file as it was given.
    """

    file: str
    subject: str
    sha256: str
    diffs: tuple[FileDiff, ...]

    @property
    def text(self) -> str:
        """The diffs, for `patch -p1`."""
        return "".join(diff.text() for diff in self.diffs)

    @property
    def key(self) -> str:
        """SHA-256 of what it changes, whatever is said about it: a part of cache keys."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """The files it changes."""
        return tuple(dict.fromkeys(name for diff in self.diffs for name in diff.names))

    def __str__(self) -> str:
        return f"{self.file} ({self.subject})" if self.subject else self.file


@dataclass(frozen=True)
class _Mail:
    """A patch to be: `number` of `count` in version `version` of its series (0: not said)."""

    what: str
    subject: str
    version: int
    number: int | None
    count: int
    reply: bool
    body: str
    sha256: str


def read_patches(
    paths: Sequence[Path], note: Note, named: Named = without_prefix
) -> tuple[Patch, ...]:
    """The patches of these files and directories, in this order.

    `note` gets a line for what is left out, `named` is as for `read_diffs`. Raises InputError
    for what is not there, holds no patch, or is damaged.
    """
    found: list[Patch] = []
    for path in paths:
        mails = _mails(path)
        found += _patches(mails, str(path), note, named)
    return tuple(found)


def read_patch(path: Path, named: Named = without_prefix) -> Patch:
    """The one patch of a file. Raises InputError for a file with none, or with several."""
    patches = read_patches([path], lambda line: None, named)
    if len(patches) != 1:
        raise InputError(f"{path} holds {len(patches)} patches, one was expected")
    return patches[0]


def _mails(path: Path) -> list[_Mail]:
    if path.is_dir():
        return _of_directory(path)
    if not path.exists():
        raise InputError(f"there is no driver patch {path}")
    return _of_file(path)


def _of_directory(path: Path) -> list[_Mail]:
    if all((path / name).is_dir() for name in _MAILDIR):
        files = sorted(file for name in _MAILDIR for file in (path / name).iterdir())
        kind = "the maildir"
    else:
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        kind = "the directory"
    mails = [mail for file in files if file.is_file() for mail in _of_file(file)]
    if not mails:
        suffixes = ", ".join(f"*{one}" for one in sorted(_SUFFIXES - {".gz"}))
        raise InputError(f"{kind} {path} holds no patches", hint=f"looked for {suffixes}")
    return mails


def _of_file(path: Path) -> list[_Mail]:
    try:
        if path.stat().st_size > _MOST:
            raise InputError(f"{path} is no patch: it has {path.stat().st_size >> 20} MiB")
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"the driver patch {path} cannot be read: {error}") from error
    sha256 = hashlib.sha256(raw).hexdigest()
    what = path.name
    if not content.strip():
        raise InputError(f"{what} is empty: it holds no patch")
    if b"\0" in content:
        raise InputError(f"{what} is a binary file, no patch")
    content = content.replace(b"\r\n", b"\n")
    if _HTML.match(content):
        raise InputError(
            f"{what} is a web page (HTML), no patch",
            hint="take the mail itself: on lore.kernel.org “raw” or “mbox.gz”, or b4 am",
        )
    parts = _split(content)
    if parts is None:
        return [_plain(content, what, sha256)]
    return [
        _mail(part, what if len(parts) == 1 else f"{what}, mail {number}", sha256)
        for number, part in enumerate(parts, 1)
    ]


def _split(content: bytes) -> list[bytes] | None:
    """The mails of an mbox, or the one mail; None for what is no mail.

    A line that begins with "From " begins a mail only if it has a time, as git takes it.
    """
    starts = [
        found
        for found in _FROM_LINE.finditer(content)
        if found.start() == 0 or content[: found.start()].endswith(b"\n\n")
    ]
    if starts and not content[: starts[0].start()].strip():
        ends = [found.start() for found in starts[1:]] + [len(content)]
        return [content[one.end() : end] for one, end in zip(starts, ends, strict=True)]
    headers = _IS_MAIL.match(content)
    if headers and re.search(rb"^(subject|from|message-id):", headers[0], re.M | re.I):
        return [content]
    return None


def _plain(content: bytes, what: str, sha256: str) -> _Mail:
    """A diff that is no mail: its first line is the subject if it reads like one."""
    text = content.decode("utf-8", "surrogateescape")
    first = text.lstrip("\n").partition("\n")[0].strip()
    says = not re.match(r"(diff |--- |\+\+\+ |Index: |=+$|commit [0-9a-f]{7,}$|@@)", first)
    subject = first if says and len(first) <= 200 else ""
    if found := re.match(r"commit [0-9a-f]{7,40}\n(?:\S.*\n)*\n    (\S.*)\n", text.lstrip("\n")):
        subject = found[1]  # of git show
    return _Mail(what, subject, 0, None, 0, False, text, sha256)


def _mail(content: bytes, what: str, sha256: str) -> _Mail:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    whole = " ".join(str(message.get("Subject", "")).split())
    reply = _REPLY.match(whole) is not None
    subject, version, number, count = whole, 1, None, 0
    while tag := _TAG.match(subject):
        subject = subject[tag.end() :]
        if found := _VERSION.search(tag[1]):
            version = int(found[1])
        if found := _NUMBER.search(tag[1]):
            number, count = int(found[1]), int(found[2])
    # What a reply has is not looked at, where there are patches.
    parts = _text_parts(message, what, needed=not reply)
    body = "\n".join(map(_text_of, parts))
    return _Mail(what, subject, version, number, count, reply, body, sha256)


def _text_parts(message: EmailMessage, what: str, *, needed: bool) -> list[EmailMessage]:
    parts = [part for part in message.walk() if not part.is_multipart()]
    # A patch that is attached is of any type: text/x-patch, application/octet-stream.
    named = [one for one in parts if (one.get_filename() or "").endswith((".patch", ".diff"))]
    plain = [one for one in parts if one.get_content_type() == "text/plain" and one not in named]
    texts = [one for one in parts if one in plain or one in named]
    if needed and not texts:
        types = ", ".join(sorted({one.get_content_type() for one in parts}))
        raise InputError(
            f"{what} has no text, only {types or 'nothing'}",
            hint="a patch is sent as plain text: git send-email",
        )
    return texts


def _text_of(part: EmailMessage) -> str:
    """A part decoded (base64, quoted-printable); bytes that are no UTF-8 stay what they are."""
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    charset = part.get_content_charset("utf-8")
    text = content.replace(b"\r\n", b"\n")
    try:
        return text.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return text.decode("utf-8", "surrogateescape")


def _patches(mails: Sequence[_Mail], where: str, note: Note, named: Named) -> list[Patch]:
    """The patches among mails that came together, in order."""
    with_diff: list[tuple[_Mail, tuple[FileDiff, ...]]] = []
    without: list[_Mail] = []
    replies = [mail for mail in mails if mail.reply]
    for mail in mails:
        if mail.reply and len(replies) < len(mails):
            continue
        diffs = read_diffs(mail.body, mail.what, named)
        if diffs:
            with_diff.append((mail, diffs))
        else:
            without.append(mail)
    _account(with_diff, without, where)
    left = [mail.what for mail in without]
    if left:
        note(f"{', '.join(left)}: no diff (a cover letter), left out")
    if replies and len(replies) < len(mails):
        note(f"{where}: {len(replies)} repl{'ies' if len(replies) > 1 else 'y'} left out")
    latest = max(mail.version for mail, _ in with_diff)
    numbered = all(mail.number is not None for mail, _ in with_diff)
    if numbered and (old := sorted({m.version for m, _ in with_diff} - {latest})):
        note(f"{where}: v{latest} is taken, {', '.join(f'v{n}' for n in old)} left out")
        with_diff = [one for one in with_diff if one[0].version == latest]
    if numbered:
        with_diff = _in_order(with_diff, where, note)
    return [Patch(mail.what, mail.subject, mail.sha256, diffs) for mail, diffs in with_diff]


def _account(with_diff: Iterable[object], without: Sequence[_Mail], where: str) -> None:
    """Raise InputError unless there is a patch, and each mail without one is a cover letter."""
    odd = [mail for mail in without if mail.number != 0]
    if not with_diff:
        what = without[0].what if without else where
        body = without[0].body if without else ""
        quoted = re.search(r"^> ?(diff --git|--- a/|@@ )", body, re.MULTILINE)
        why = "its diff is quoted with “> ”" if quoted else "no line `--- a/…` or `diff --git`"
        hint = "take the mail that has the patch, not a reply" if quoted else (
            "a patch is what `git format-patch` or `diff -u` writes"
        )  # fmt: skip
        raise InputError(f"{what} holds no patch: {why}", hint=hint)
    if odd and all(mail.number is not None for mail in odd):
        raise InputError(
            f"{odd[0].what} ({odd[0].subject}) is patch {odd[0].number}/{odd[0].count}, "
            "and has no diff"
        )


def _in_order(
    found: list[tuple[_Mail, tuple[FileDiff, ...]]], where: str, note: Note
) -> list[tuple[_Mail, tuple[FileDiff, ...]]]:
    """By number; InputError for two patches with one number. What is missing is noted."""
    ordered = sorted(found, key=lambda one: one[0].number or 0)
    numbers = [mail.number or 0 for mail, _ in ordered]
    counts = {mail.count for mail, _ in ordered}
    if len(counts) > 1:  # several series: as they came
        return found
    for first, second in itertools.pairwise(ordered):
        if first[0].number == second[0].number:
            if first[1] == second[1]:
                continue
            raise InputError(
                f"{where} has two patches {first[0].number}/{first[0].count}: "
                f"{first[0].what} and {second[0].what}",
                hint="give the mails of one series",
            )
    unique = {mail.number: (mail, diffs) for mail, diffs in reversed(ordered)}
    count = counts.pop()
    if missing := sorted(set(range(1, count + 1)) - set(numbers)):
        which = ", ".join(f"{n}/{count}" for n in missing)
        note(f"{where}: patch {which} of the series is not among them")
    return [unique[number] for number in sorted(unique, key=lambda n: n or 0)]
