"""File trees: where things are put, and the images made of them, read back by other tools."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from emu.errors import InputError, RigError
from emu.images.tree import FileTree


def listing(tree: FileTree) -> dict[str, str]:
    return {path: node.target or stat.filemode(node.mode) for path, node in tree}


def make_deb(folder: Path, name: str, files: Path) -> Path:
    (files / "DEBIAN").mkdir()
    (files / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
    )
    deb = folder / f"{name}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", files, deb], check=True, capture_output=True
    )
    return deb


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    (files / "bin").mkdir(parents=True)
    (files / "bin/tool").write_bytes(b"tool")
    (files / "bin/tool").chmod(0o4755)
    os.link(files / "bin/tool", files / "bin/twin")
    (files / "lib").mkdir()
    (files / "lib/so.1").write_bytes(b"library")
    (files / "lib/so").symlink_to("so.1")
    (files / "usr/share/doc").mkdir(parents=True)
    (files / "usr/share/doc/README").write_text("read me")
    (files / "tmp").mkdir()
    (files / "tmp").chmod(0o1777)
    return make_deb(tmp_path, "thing", files)


def test_package_is_unpacked_through_merged_usr_links(deb: Path) -> None:
    tree = FileTree.from_debs([deb], leave_out=["usr/share"])
    assert listing(tree) == {
        "bin": "usr/bin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "sbin": "usr/sbin",
        "tmp": "drwxrwxrwt",
        "usr": "drwxr-xr-x",
        "usr/bin": "drwxr-xr-x",
        "usr/bin/tool": "-rwsr-xr-x",
        "usr/bin/twin": "-rwsr-xr-x",
        "usr/lib": "drwxr-xr-x",
        "usr/lib/so": "so.1",
        "usr/lib/so.1": "-rw-r--r--",
        "usr/lib64": "drwxr-xr-x",
        "usr/sbin": "drwxr-xr-x",
    }
    assert tree.read("bin/twin") == b"tool"
    assert tree.read("/lib/so") == b"library"


def test_paths_stay_without_merged_usr(deb: Path) -> None:
    tree = FileTree.from_debs([deb], keep=["lib/so*"], merged=False)
    assert listing(tree) == {"lib": "drwxr-xr-x", "lib/so": "so.1", "lib/so.1": "-rw-r--r--"}


def test_patterns_stop_at_a_slash_and_reach_below() -> None:
    tree = FileTree()
    for path in ("usr/lib/a/x.so", "usr/lib/a/b/x.so", "usr/lib/x.so"):
        tree.add_file(path, b"")
    assert tree.glob("lib/*/x.so") == ["usr/lib/a/x.so"]
    assert tree.glob("lib/**/x.so") == ["usr/lib/a/b/x.so", "usr/lib/a/x.so"]
    assert tree.remove("lib/a") == 4
    assert tree.glob("lib/*") == ["usr/lib/x.so"]


def test_links_in_the_tree_are_followed() -> None:
    tree = FileTree()
    tree.add_link("var/run", "/run")
    tree.add_link("etc/up", "../usr/bin")
    tree.add_file("var/run/lock/a", b"1")
    tree.add_file("etc/up/b", b"2")
    assert tree.read("run/lock/a") == b"1"
    assert tree.read("usr/bin/b") == b"2"
    assert "etc/up/b" in tree
    assert "etc/up/c" not in tree


def test_impossible_paths_are_refused() -> None:
    tree = FileTree()
    tree.add_file("etc/passwd", b"")
    with pytest.raises(InputError, match="etc/passwd is not a directory"):
        tree.add_file("etc/passwd/x", b"")
    with pytest.raises(InputError, match="a directory with files"):
        tree.add_link("etc", "usr")
    tree.add_link("a", "b")
    tree.add_link("b", "a")
    with pytest.raises(InputError, match="circle"):
        tree.read("a")
    with pytest.raises(InputError, match="no file etc/shadow"):
        tree.read("etc/shadow")


def test_broken_package_is_named(tmp_path: Path, deb: Path) -> None:
    cut = tmp_path / "cut.deb"
    cut.write_bytes(deb.read_bytes()[:-100])
    with pytest.raises(RigError, match=r"cut\.deb cannot be unpacked"):
        FileTree.from_debs([cut])


def a_tree() -> FileTree:
    tree = FileTree()
    tree.add_file("init", b"#!/bin/sh\n", 0o755)
    tree.add_file("etc/a name with spaces", b"12345")
    tree.add_file("empty", b"")
    tree.add_dir("tmp", 0o1777)
    tree.add_link("etc/mtab", "/proc/mounts")
    tree.add_node("dev/console", "char", 5, 1)
    tree.add_node("dev/vda", "block", 254, 0, 0o660)
    return tree


def test_cpio_reads_back(tmp_path: Path) -> None:
    a_tree().write_cpio(tmp_path / "initrd")
    listed = subprocess.run(
        ["cpio", "-tv", "--quiet", "--numeric-uid-gid"],
        input=(tmp_path / "initrd").read_bytes(),
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    ).stdout.decode()
    rows = {tuple(line.split(maxsplit=1)) for line in listed.splitlines()}
    squeezed = {" ".join([mode, *rest.split()]) for mode, rest in rows}
    assert "-rwxr-xr-x 1 0 0 10 Jan 1 1970 init" in squeezed
    assert "-rw-r--r-- 1 0 0 5 Jan 1 1970 etc/a name with spaces" in squeezed
    assert "lrwxrwxrwx 1 0 0 12 Jan 1 1970 etc/mtab -> /proc/mounts" in squeezed
    assert "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console" in squeezed
    assert "brw-rw---- 1 0 0 254, 0 Jan 1 1970 dev/vda" in squeezed
    assert "drwxrwxrwt 2 0 0 0 Jan 1 1970 tmp" in squeezed
    assert len(squeezed) == len(list(a_tree()))


def test_compressed_cpio_holds_the_same(tmp_path: Path) -> None:
    tree = a_tree()
    tree.write_cpio(tmp_path / "plain")
    tree.write_cpio(tmp_path / "gz", "gzip")
    tree.write_cpio(tmp_path / "zst", "zstd")
    plain = (tmp_path / "plain").read_bytes()
    assert gzip.decompress((tmp_path / "gz").read_bytes()) == plain
    assert (tmp_path / "gz").read_bytes()[3:8] == bytes(5), "a name or a time is in its header"
    unpacked = subprocess.run(
        ["zstd", "-dc", tmp_path / "zst"], capture_output=True, check=True
    ).stdout
    assert unpacked == plain


def test_squashfs_reads_back(tmp_path: Path) -> None:
    a_tree().write_squashfs(tmp_path / "root.squashfs")
    listed = subprocess.run(
        ["unsquashfs", "-lln", tmp_path / "root.squashfs"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TZ": "UTC"},
    ).stdout
    squeezed = {" ".join(line.split()) for line in listed.splitlines()}
    root = next(line for line in squeezed if line.endswith(" squashfs-root"))
    assert root.startswith("drwxr-xr-x 0/0 ")
    assert root.endswith(" 1970-01-01 00:00 squashfs-root")
    made = subprocess.run(
        ["unsquashfs", "-mkfs-time", tmp_path / "root.squashfs"], capture_output=True, check=True
    ).stdout
    assert made == b"0\n"
    assert "-rwxr-xr-x 0/0 10 1970-01-01 00:00 squashfs-root/init" in squeezed
    assert "-rw-r--r-- 0/0 5 1970-01-01 00:00 squashfs-root/etc/a name with spaces" in squeezed
    assert "crw------- 0/0 5, 1 1970-01-01 00:00 squashfs-root/dev/console" in squeezed
    assert "brw-rw---- 0/0 254, 0 1970-01-01 00:00 squashfs-root/dev/vda" in squeezed
    assert "lrwxrwxrwx 0/0 12 1970-01-01 00:00 squashfs-root/etc/mtab -> /proc/mounts" in squeezed


def test_images_do_not_depend_on_order_time_or_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(tree: FileTree) -> list[str]:
        tree.write_cpio(tmp_path / "cpio")
        tree.write_cpio(tmp_path / "gz", "gzip")
        tree.write_cpio(tmp_path / "zst", "zstd")
        tree.write_squashfs(tmp_path / "squashfs")
        names = ("cpio", "gz", "zst", "squashfs")
        return [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]

    first = digests(a_tree())
    backwards = FileTree()
    for path, node in reversed(list(a_tree())):
        if stat.S_ISREG(node.mode):
            backwards.add_file(path, node.data, stat.S_IMODE(node.mode))
        elif stat.S_ISLNK(node.mode):
            backwards.add_link(path, node.target)
        elif stat.S_ISDIR(node.mode):
            backwards.add_dir(path, stat.S_IMODE(node.mode))
        else:
            major, minor = node.device
            kind: Literal["char", "block"] = "char" if stat.S_ISCHR(node.mode) else "block"
            backwards.add_node(path, kind, major, minor, stat.S_IMODE(node.mode))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    old = os.umask(0o077)
    try:
        assert digests(backwards) == first
    finally:
        os.umask(old)


def test_failed_image_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root.squashfs").write_bytes(b"old")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/sqfstar"
    tool.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(RigError, match="sqfstar failed") as caught:
        a_tree().write_squashfs(tmp_path / "root.squashfs")
    assert caught.value.lines[-1] == "no room"
    assert (tmp_path / "root.squashfs").read_bytes() == b"old"
    assert not (tmp_path / "root.squashfs.new").exists()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="sqfstar is not installed"):
        a_tree().write_squashfs(tmp_path / "root.squashfs")


def test_extract_writes_files_links_and_directories(tmp_path: Path) -> None:
    a_tree().extract(tmp_path / "out")
    assert (tmp_path / "out/etc/a name with spaces").read_bytes() == b"12345"
    assert os.access(tmp_path / "out/init", os.X_OK)
    assert (tmp_path / "out/etc/mtab").readlink() == Path("/proc/mounts")
    assert not (tmp_path / "out/dev/console").exists()


def test_directory_of_this_machine_is_copied_whole(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir(mode=0o700)
    (tmp_path / "sub/run").write_text("x")
    (tmp_path / "sub/run").chmod(0o700)
    (tmp_path / "sub/link").symlink_to("run")
    tree = FileTree(merged=False)
    tree.add_host(tmp_path / "sub", "opt")
    assert listing(tree) == {"opt": "drwxr-xr-x", "opt/link": "run", "opt/run": "-rwxr-xr-x"}


def test_missing_library_is_found() -> None:
    program = Path(shutil.which("dpkg-deb") or "/bin/ls").resolve()
    tree = FileTree()
    tree.add_file("usr/bin/program", program.read_bytes(), 0o755)
    missing = tree.missing_libraries()
    assert "libc.so.6" in missing["usr/bin/program"]
    for library in missing["usr/bin/program"]:
        tree.add_file(f"lib/x86_64-linux-gnu/{library}", b"")
    assert tree.missing_libraries() == {}
    tree.remove("lib/x86_64-linux-gnu/libc.so.6")
    assert tree.missing_libraries() == {"usr/bin/program": ("libc.so.6",)}
