"""The cache: entries whole or absent, trusted only as far as they verify."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emu.errors import InputError, RigError
from emu.images import cache as cache_module
from emu.images import manifest
from emu.images.cache import Cache, key_of
from emu.images.manifest import JSON
from emu.progress import Progress

INPUTS: dict[str, JSON] = {"source": "abc", "flags": ["-O2"], "level": 3}


class Notes(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


class Builder:
    """Builds the same three things each time, and counts."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self, into: Path) -> None:
        self.built += 1
        (into / "sub").mkdir()
        (into / "sub/data").write_bytes(b"x" * 100_000)
        (into / "tool").write_text("#!/bin/sh\n")
        (into / "tool").chmod(0o755)
        (into / "link").symlink_to("sub/data")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "a cache")


@pytest.fixture
def builder() -> Builder:
    return Builder()


def leftovers(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.root / "tmp").iterdir())


def test_built_once_then_found(cache: Cache, builder: Builder) -> None:
    assert cache.find("kernel", INPUTS) is None
    path = cache.entry("kernel", INPUTS, builder, Progress())
    assert path == cache.root / "kernel" / key_of("kernel", INPUTS)
    assert (path / "link").read_bytes() == b"x" * 100_000
    assert cache.entry("kernel", dict(reversed(INPUTS.items())), builder, Progress()) == path
    assert Cache(cache.root).find("kernel", INPUTS) == path
    assert builder.built == 1
    assert leftovers(cache) == []
    assert cache.entry("kernel", {**INPUTS, "level": 4}, builder, Progress()) != path
    assert cache.entry("image", INPUTS, builder, Progress()) != path
    assert builder.built == 3


def test_manifest_names_the_inputs(cache: Cache, builder: Builder) -> None:
    path = cache.entry("kernel", INPUTS, builder, Progress())
    written = json.loads((path / "manifest.json").read_text())
    assert written["kind"] == "kernel"
    assert written["inputs"] == INPUTS
    assert written["files"]["sub/data"]["size"] == 100_000
    assert written["files"]["tool"]["executable"] is True
    assert written["files"]["link"] == {"link": "sub/data"}


def alter(path: Path) -> None:
    """One byte, size and modification time as before."""
    before = (path / "sub/data").stat()
    with (path / "sub/data").open("r+b") as handle:
        handle.seek(50_000)
        handle.write(b"y")
    os.utime(path / "sub/data", ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path / "sub/data", 99_999)


def lose_a_file(path: Path) -> None:
    (path / "tool").unlink()


def add_a_file(path: Path) -> None:
    (path / "sub/more").touch()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def spoil_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": ')


def turn_the_link(path: Path) -> None:
    (path / "link").unlink()
    (path / "link").symlink_to("tool")


def lose_a_mode(path: Path) -> None:
    (path / "tool").chmod(0o644)


@pytest.mark.parametrize("settle", [0.0, 0.05], ids=["at-once", "later"])
@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (alter, "was altered (sub/data)"),
        (cut, "was altered (sub/data)"),
        (lose_a_file, "lacks tool"),
        (add_a_file, "holds a file too many (sub/more)"),
        (lose_the_manifest, "has no manifest"),
        (spoil_the_manifest, "has an unreadable manifest"),
        (turn_the_link, "was altered (link)"),
        (lose_a_mode, "was altered (tool)"),
    ],
)
def test_damaged_entry_is_built_again(
    cache: Cache, builder: Builder, harm: Callable[[Path], None], fault: str, settle: float
) -> None:
    path = cache.entry("kernel", INPUTS, builder, Progress())
    time.sleep(settle)
    assert cache.find("kernel", INPUTS) == path
    harm(path)
    assert cache.find("kernel", INPUTS) is None
    notes = Notes()
    assert cache.entry("kernel", INPUTS, builder, notes) == path
    assert builder.built == 2
    assert notes.lines == [f"cache: kernel {path.name[:8]} {fault}: thrown away, building again"]
    assert (path / "sub/data").read_bytes() == b"x" * 100_000
    assert leftovers(cache) == []


def test_unchanged_entry_is_not_read_again(
    cache: Cache, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.entry("kernel", INPUTS, builder, Progress())
    time.sleep(0.05)
    assert cache.find("kernel", INPUTS) == path
    hashed: list[Path] = []
    monkeypatch.setattr(manifest, "sha256_of", hashed.append)
    assert cache.find("kernel", INPUTS) == path
    assert hashed == []


def test_fingerprint_taken_too_soon_is_not_trusted(
    cache: Cache, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_TICK_NS", 10**12)
    path = cache.entry("kernel", INPUTS, builder, Progress())
    monkeypatch.setattr(manifest, "sha256_of", lambda path: "")
    assert cache.find("kernel", INPUTS) is None, "it was not hashed"
    assert path.is_dir()


def test_copied_cache_is_hashed_and_then_trusted(
    cache: Cache, builder: Builder, tmp_path: Path
) -> None:
    cache.entry("kernel", INPUTS, builder, Progress())
    subprocess.run(["cp", "-r", cache.root, tmp_path / "copy"], check=True)
    copy = Cache(tmp_path / "copy")
    assert copy.find("kernel", INPUTS) is not None
    copy.entry("kernel", INPUTS, builder, Progress())
    assert builder.built == 1


def test_failed_build_leaves_nothing(cache: Cache, builder: Builder) -> None:
    def fail(into: Path) -> None:
        builder(into)
        raise InputError("a patch does not apply")

    def stop(into: Path) -> None:
        builder(into)
        raise KeyboardInterrupt

    with pytest.raises(InputError, match="a patch does not apply"):
        cache.entry("kernel", INPUTS, fail, Progress())
    with pytest.raises(KeyboardInterrupt):
        cache.entry("kernel", INPUTS, stop, Progress())
    assert leftovers(cache) == []
    assert cache.entries() == []
    cache.entry("kernel", INPUTS, builder, Progress())


def test_full_disk_is_reported(cache: Cache) -> None:
    def fill(into: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(
        RigError, match=r"no room on the disk: building kernel .* MiB left"
    ) as caught:
        cache.entry("kernel", INPUTS, fill, Progress())
    assert str(cache.root) in str(caught.value)
    assert "emu cache prune" in str(caught.value)
    with pytest.raises(RigError, match=r"building kernel needs \d+ MiB"):
        cache.entry("kernel", INPUTS, fill, Progress(), room=1 << 60)
    assert leftovers(cache) == []
    assert cache.entries() == []


SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from emu.errors import RigError
from emu.images.cache import Cache
from emu.progress import Progress
cache = Cache(Path(sys.argv[1]) / "cache")
def quietly(into):  # a tool that reports it in its own way
    if subprocess.run(["dd", "if=/dev/zero", f"of={into}/data", "bs=1M"], stderr=-3).returncode:
        raise RigError("dd failed")
def plainly(into):
    (into / "data").write_bytes(bytes(64 << 20))
for build in quietly, plainly:
    try:
        cache.entry("image", {}, build, Progress())
    except RigError as error:
        assert "no room on the disk: building image had written 32 MiB" in str(error), error
        assert "32 MiB left" in str(error), error
    else:
        raise AssertionError("it fitted")
    assert not list((cache.root / "tmp").iterdir())
    assert not cache.entries()
cache.entry("image", {}, lambda into: (into / "data").write_bytes(bytes(20 << 20)), Progress())
print("held")
"""


def test_disk_that_fills_up_during_a_build(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=32m none "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    child = [sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    done = subprocess.run([*command, *child], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no user may mount a small disk here; test_full_disk_is_reported ran instead")
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr


CHILD = """
import sys, time
from pathlib import Path
from emu.images.cache import Cache
from emu.progress import Progress
class Stages(Progress):
    def stage(self, what):
        print("stage", what, flush=True)
        return super().stage(what)
def build(into):
    (into / "data").write_bytes(b"x" * 100_000)
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
print(Cache(Path(sys.argv[1])).entry("kernel", {}, build, Stages()), flush=True)
"""


@pytest.fixture
def child(cache: Cache) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Start another process that builds the same entry, taking so many seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(cache.root), str(seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


Start = Callable[[float], "subprocess.Popen[str]"]


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_processes_build_once(cache: Cache, child: Start) -> None:
    first = child(1)
    assert first_line(first) == "building\n"
    second = child(1)
    assert first_line(second).startswith(f"stage waiting for pid {first.pid} (")
    path = f"{cache.find('kernel', {}) or cache.root / 'kernel' / key_of('kernel', {})}\n"
    assert first.communicate()[0] == path
    assert second.communicate()[0] == path
    assert leftovers(cache) == []


def test_killed_builder_leaves_nothing(cache: Cache, child: Start) -> None:
    killed = child(60)
    assert first_line(killed) == "building\n"
    assert len(leftovers(cache)) == 2
    Cache(cache.root)
    assert len(leftovers(cache)) == 2, "swept from under a living builder"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert leftovers(Cache(cache.root)) == []
    assert cache.entries() == []
    following = child(0)
    assert first_line(following) == "building\n"
    assert following.wait() == 0


def test_discard_removes_an_entry_that_verifies(cache: Cache, builder: Builder) -> None:
    path = cache.entry("checkpoint", INPUTS, builder, Progress())
    assert cache.discard("checkpoint", INPUTS)
    assert not path.exists()
    assert not cache.discard("checkpoint", INPUTS)
    assert cache.entry("checkpoint", INPUTS, builder, Progress()) == path
    assert builder.built == 2


def test_entries_and_prune(cache: Cache, builder: Builder) -> None:
    kernel = cache.entry("kernel", INPUTS, builder, Progress())
    image = cache.entry("image", INPUTS, builder, Progress())
    (cache.store("debs") / "a.deb").write_bytes(b"x" * 5000)
    (cache.root / "runs").mkdir()
    (cache.root / "runs/1").mkdir()
    found = {info.kind: info for info in cache.entries()}
    assert set(found) == {"kernel", "image", "debs"}
    assert found["kernel"].path == kernel
    assert found["kernel"].inputs == INPUTS
    assert found["kernel"].size >= 100_000
    assert found["kernel"].created <= found["kernel"].last_used

    assert cache.prune(unused_days=1) == []
    week = time.time() + 7 * 86400
    assert {info.kind for info in cache.prune(unused_days=1, kinds={"image"}, now=week)} == {
        "image"
    }
    assert not image.exists()
    with cache.lock("debs", "fetches packages", Progress()):
        assert {info.kind for info in cache.prune()} == {"kernel"}
    assert {info.kind for info in cache.prune()} == {"debs"}
    assert cache.entries() == []
    assert (cache.root / "runs/1").is_dir()
    assert leftovers(cache) == []


def test_find_updates_the_last_use(cache: Cache, builder: Builder) -> None:
    path = cache.entry("kernel", INPUTS, builder, Progress())
    os.utime(path.with_name(f"{path.name}.stat"), (1, 1))
    assert cache.entries()[0].last_used == 1
    cache.find("kernel", INPUTS)
    assert cache.entries()[0].last_used > 1


def test_cache_root_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x d g"))
    assert Cache().root == tmp_path / "x d g/emu-xen-block"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().root == tmp_path / "home/.cache/emu-xen-block"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        Cache(tmp_path / "file/cache")


@pytest.mark.parametrize("kind", ["tmp", "locks", "a/b", "", ".x"])
def test_kinds_are_plain_names(cache: Cache, builder: Builder, kind: str) -> None:
    with pytest.raises(ValueError, match="not a kind"):
        cache.entry(kind, INPUTS, builder, Progress())


class TestSparse:
    """Digests of files that are mostly holes, such as a guest's RAM."""

    def sparse(self, path: Path, *pieces: tuple[int, bytes], size: int = 64 << 20) -> Path:
        with path.open("wb") as file:
            file.truncate(size)
            for at, data in pieces:
                file.seek(at)
                file.write(data)
        return path

    def test_zeros_on_the_disk_count_as_holes(self, tmp_path: Path) -> None:
        thin = self.sparse(tmp_path / "thin", (5 << 20, b"data"))
        thick = self.sparse(tmp_path / "thick", (0, bytes(9 << 20)), (5 << 20, b"data"))
        assert manifest.sparse_digest(thin) == manifest.sparse_digest(thick)

    def test_sparse_digest_depends_on_offset_and_content(self, tmp_path: Path) -> None:
        digests = {
            manifest.sparse_digest(self.sparse(tmp_path / "file", piece))
            for piece in [
                (5 << 20, b"data"),
                (5 << 20, b"date"),
                (6 << 20, b"data"),
                ((5 << 20) + 1, b"data"),
                ((64 << 20) - 4, b"data"),
            ]
        }
        assert len(digests) == 5

    def test_altered_byte_is_found(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path)

        def build(made: Path) -> None:
            self.sparse(made / "ram", (1 << 20, b"x" * 100_000))

        path = cache.entry("k", {}, build, Progress())
        what = json.loads((path / "manifest.json").read_text())["files"]["ram"]
        assert set(what) == {"sparse", "size", "executable"}
        with (path / "ram").open("r+b") as file:
            file.seek((1 << 20) + 50_000)
            file.write(b"y")
        assert cache.find("k", {}) is None
