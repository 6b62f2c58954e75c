"""A guest's file tree, in memory, and the images made of it.

Everything belongs to root and has the time 0; nothing needs root to be put in, device
nodes included. The same tree gives the same bytes, always for `cpio`, and for `squashfs`
with the same squashfs-tools.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import posixpath
import re
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, Protocol

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from emu.errors import InputError, RigError
from emu.runprogram import bounded, find_program

Compression = Literal["none", "gzip", "zstd"]
_MERGED = ("bin", "lib", "lib64", "sbin")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib")
"""Where ld.so looks on Debian amd64 (ld.so.conf.d and its built-in path)."""
_SQUASHFS = (
    *("-quiet", "-no-progress", "-no-xattrs", "-noI", "-noId", "-noD", "-noF", "-noX"),
    *("-all-root", "-all-time", "0", "-mkfs-time", "0", "-root-mode", "755"),
)


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Node:
    """One file of a tree; `mode` is as in stat(2), its type included."""

    mode: int
    data: bytes = b""
    target: str = ""
    device: tuple[int, int] = (0, 0)


class FileTree:
    """Paths are relative to the guest's root ("usr/bin/env").

    With `merged`, /bin, /sbin, /lib and /lib64 are links into /usr, as on any Debian
    since bookworm, and what packages put there goes where the links lead. That holds for
    every link to a directory: a path is followed before anything is put at its end.
    """

    def __init__(self, *, merged: bool = True) -> None:
        self._nodes: dict[str, Node] = {}
        for name in _MERGED if merged else ():
            self.add_dir(f"usr/{name}")
            self.add_link(name, f"usr/{name}")

    @classmethod
    def from_debs(
        cls,
        debs: Iterable[Path],
        *,
        keep: Iterable[str] = (),
        leave_out: Iterable[str] = (),
        merged: bool = True,
    ) -> FileTree:
        """The files of these packages: those `keep` matches (default: all), less `leave_out`.

        A pattern matches a path and everything below it; `*` stops at a slash, `**` not.
        """
        tree = cls(merged=merged)
        for deb in debs:
            tree.add_deb(deb, keep=keep, leave_out=leave_out)
        return tree

    def add_deb(
        self, deb: Path, *, keep: Iterable[str] = (), leave_out: Iterable[str] = ()
    ) -> None:
        """Unpack a package into the tree; its maintainer scripts do not run."""
        kept, left = self._patterns(keep), self._patterns(leave_out)
        with _read_tar(deb) as tar:
            for member in tar:
                path = self.follow(member.name, last=False)
                if not path or (left and left.match(path)) or (kept and not kept.match(path)):
                    continue
                mode = member.mode & 0o7777
                if member.isdir():
                    self.add_dir(path, mode)
                elif member.issym():
                    self.add_link(path, member.linkname)
                elif member.islnk():
                    self._put(path, self._nodes[self.follow(member.linkname)])
                elif member.isreg():
                    content = tar.extractfile(member)
                    self.add_file(path, content.read() if content else b"", mode)
                else:
                    raise InputError(f"{deb.name} holds a file of an unknown kind: {member.name}")

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Put a file, and the directories above it, in place of what was there."""
        self._put(path, Node(stat.S_IFREG | mode, data))

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory; if there is one already (or a link to one), it gets that mode."""
        path = self.follow(path)
        if path in self._nodes and stat.S_ISDIR(self._nodes[path].mode):
            self._nodes[path] = replace(self._nodes[path], mode=stat.S_IFDIR | mode)
        elif path:
            self._put(path, Node(stat.S_IFDIR | mode))

    def add_link(self, path: str, target: str) -> None:
        """Put a symbolic link; `target` is taken as it is."""
        self._put(path, Node(stat.S_IFLNK | 0o777, target=target))

    def add_node(
        self, path: str, kind: Literal["char", "block"], major: int, minor: int, mode: int = 0o600
    ) -> None:
        """Put a device node."""
        kinds = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}
        self._put(path, Node(kinds[kind] | mode, device=(major, minor)))

    def add_host(self, source: Path, path: str) -> None:
        """Copy a file, link or whole directory of this machine; modes become 755 or 644."""
        if source.is_symlink():
            self.add_link(path, str(source.readlink()))
        elif source.is_dir():
            self.add_dir(path)
            for item in sorted(source.iterdir()):
                self.add_host(item, f"{path}/{item.name}")
        else:
            executable = source.stat().st_mode & stat.S_IXUSR
            self.add_file(path, source.read_bytes(), 0o755 if executable else 0o644)

    def remove(self, pattern: str) -> int:
        """Remove what matches, with all below it; how many files, links and directories went."""
        gone = self.glob(pattern)
        for path in gone:
            del self._nodes[path]
        return len(gone)

    def glob(self, pattern: str) -> list[str]:
        """Paths that match, and those below them, sorted."""
        matches = self._patterns([pattern])
        return sorted(path for path in self._nodes if matches and matches.match(path))

    def read(self, path: str) -> bytes:
        """The content of a file, links followed; InputError if there is none."""
        node = self._nodes.get(self.follow(path))
        if node is None or not stat.S_ISREG(node.mode):
            raise InputError(f"the tree has no file {path}")
        return node.data

    def __contains__(self, path: str) -> bool:
        return self.follow(path) in self._nodes

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        """Every (path, node), directories before what is in them."""
        return iter(sorted(self._nodes.items()))

    def follow(self, path: str, *, last: bool = True) -> str:
        """The path with every link on the way followed; the last name too, if `last`."""
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        done: list[str] = []
        for _ in range(1000):
            if not todo:
                return "/".join(done)
            part = todo.pop()
            if part == "..":
                done = done[:-1]
                continue
            node = self._nodes.get("/".join([*done, part]))
            if node is None or not stat.S_ISLNK(node.mode) or not (todo or last):
                done.append(part)
                continue
            if node.target.startswith("/"):
                done = []
            todo += [part for part in reversed(node.target.split("/")) if part not in ("", ".")]
        raise InputError(f"the tree has links in a circle at {path}")

    def missing_libraries(self) -> dict[str, tuple[str, ...]]:
        """For each program or library that would not load: what it needs and does not find."""
        missing = {}
        for path, node in self:
            if stat.S_ISREG(node.mode) and node.data.startswith(b"\x7fELF"):
                where, needs = _dynamic(node.data, posixpath.dirname(path))
                lost = tuple(
                    name
                    for name in needs
                    if not any(f"{folder}/{name}" in self for folder in (*where, *_LIBRARIES))
                )
                if lost:
                    missing[path] = lost
        return missing

    def write_cpio(self, path: Path, compression: Compression = "none") -> None:
        """Write the tree as an initial RAM file system (cpio "newc", what the kernel takes)."""
        with _whole(path) as fresh, fresh.open("wb") as out:
            if compression == "none":
                self._cpio(out)
            elif compression == "gzip":
                with gzip.GzipFile("", "wb", 9, out, mtime=0) as packed:
                    self._cpio(packed)
            else:
                with _through(
                    ["zstd", "--quiet", "--single-thread", "-9", "--stdout"], out
                ) as pipe:
                    self._cpio(pipe)

    def write_squashfs(self, path: Path) -> None:
        """Write the tree as an uncompressed squashfs (the guest's kernel needs squashfs + zlib)."""
        with _whole(path) as fresh, _through(["sqfstar", *_SQUASHFS, str(fresh)]) as pipe:
            self.write_tar(pipe)

    def write_tar(self, out: IO[bytes]) -> None:
        """Write the tree as a tar stream."""
        types = {
            stat.S_IFREG: tarfile.REGTYPE,
            stat.S_IFDIR: tarfile.DIRTYPE,
            stat.S_IFLNK: tarfile.SYMTYPE,
            stat.S_IFCHR: tarfile.CHRTYPE,
            stat.S_IFBLK: tarfile.BLKTYPE,
        }
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for path, node in self:
                member = tarfile.TarInfo(path)
                member.type = types[stat.S_IFMT(node.mode)]
                member.mode, member.size = stat.S_IMODE(node.mode), len(node.data)
                member.linkname = node.target
                member.devmajor, member.devminor = node.device
                tar.addfile(member, io.BytesIO(node.data))

    def extract(self, into: Path) -> None:
        """Write files, directories and links below a real directory (no device nodes)."""
        into.mkdir(parents=True, exist_ok=True)
        for path, node in self:
            there = into / path
            if stat.S_ISDIR(node.mode):
                there.mkdir(parents=True, exist_ok=True)
            elif stat.S_ISLNK(node.mode):
                there.symlink_to(node.target)
            elif stat.S_ISREG(node.mode):
                there.write_bytes(node.data)
                there.chmod(stat.S_IMODE(node.mode) & 0o755)

    def _put(self, path: str, node: Node) -> None:
        path = self.follow(path, last=False)
        if not path:
            raise ValueError("nothing can be put in place of the tree's root")
        parent = posixpath.dirname(path)
        if parent and parent not in self._nodes:
            self._put(parent, Node(stat.S_IFDIR | 0o755))
        elif parent and not stat.S_ISDIR(self._nodes[parent].mode):
            raise InputError(f"{path} cannot be put into the tree: {parent} is not a directory")
        old = self._nodes.get(path)
        if old and stat.S_ISDIR(old.mode) and any(p.startswith(f"{path}/") for p in self._nodes):
            raise InputError(f"{path} cannot be put into the tree: it is a directory with files")
        self._nodes[path] = node

    def _patterns(self, patterns: Iterable[str]) -> re.Pattern[str] | None:
        """One expression for all the patterns; None if there are none."""
        parts = [_translate(self.follow(pattern, last=False)) for pattern in patterns]
        return re.compile(f"(?:{'|'.join(parts)})(?:/.*)?$", re.DOTALL) if parts else None

    def _cpio(self, out: _Sink) -> None:
        for inode, (path, node) in enumerate(self, 1):
            data = node.target.encode() if stat.S_ISLNK(node.mode) else node.data
            _cpio_member(out, path, inode, node.mode, data, node.device)
        _cpio_member(out, "TRAILER!!!", 0, 0, b"", (0, 0))


def _cpio_member(
    out: _Sink, path: str, inode: int, mode: int, data: bytes, device: tuple[int, int]
) -> None:
    """The kernel's Documentation/driver-api/early-userspace/buffer-format.rst has the layout."""
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def _dynamic(data: bytes, folder: str) -> tuple[list[str], list[str]]:
    """Of an ELF file in `folder`: the directories it has searched, and what it needs."""
    wanted = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}
    found: dict[str, list[str]] = {name: [] for name in wanted}
    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".dynamic")
        for tag in section.iter_tags() if isinstance(section, DynamicSection) else ():
            if name := wanted.get(tag.entry.d_tag):
                found[tag.entry.d_tag].append(getattr(tag, name))
    except ELFError as error:
        raise InputError(f"a broken ELF file in {folder}: {error}") from error
    where = ":".join(found["DT_RPATH"] + found["DT_RUNPATH"])
    where = re.sub(r"\$(ORIGIN|\{ORIGIN\})", f"/{folder}", where)
    return where.split(":") if where else [], found["DT_NEEDED"]


def _translate(pattern: str) -> str:
    parts = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        parts.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*|\?)", pattern)
    )


@contextlib.contextmanager
def _read_tar(deb: Path) -> Iterator[tarfile.TarFile]:
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with tempfile.TemporaryFile() as errors:
        process = _start(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        with process, bounded(process, f"reading {deb.name}"):
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                    yield tar
                process.stdout.read()
            except tarfile.TarError as error:
                process.wait()
                raise _tool_failed(command, errors, f"{deb.name} cannot be unpacked") from error
        if process.returncode:
            raise _tool_failed(command, errors, f"{deb.name} cannot be unpacked")


@contextlib.contextmanager
def _through(command: list[str], out: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """A pipe into a tool; RigError with its last lines if it fails."""
    with tempfile.TemporaryFile() as errors:
        process = _start(
            command, stdin=subprocess.PIPE, stdout=out or subprocess.DEVNULL, stderr=errors
        )
        assert process.stdin is not None
        with (
            bounded(process, f"packing with {command[0]}"),
            contextlib.suppress(BrokenPipeError),
            process.stdin,
        ):
            yield process.stdin
        if process.returncode:
            raise _tool_failed(command, errors, f"{command[0]} failed")


def _start(
    command: list[str], stdin: IO[bytes] | int, stdout: IO[bytes] | int, stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    # squashfs-tools refuse SOURCE_DATE_EPOCH beside -all-time
    environ = {name: text for name, text in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    program = find_program(command[0])
    return subprocess.Popen(
        command, executable=program, env=environ, stdin=stdin, stdout=stdout, stderr=stderr
    )


def _tool_failed(command: list[str], errors: IO[bytes], what: str) -> RigError:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    return RigError(what, lines=[" ".join(command), *lines[-5:]])


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when all went well."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
