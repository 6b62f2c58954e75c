"""The command line: parsing, exit statuses, and the commands that need no guest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kernel_names import a_kernel

from emu import __version__, cli
from emu.commands import options
from emu.errors import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_RIG, EXIT_USAGE, InputError, RigError
from emu.images import kernel_specs, xens
from emu.images.cache import Cache
from emu.images.guests import package_sets
from emu.images.packages import Lock, Package, lock_digest
from emu.lab import bench, store
from emu.machine.rundir import RunDir
from emu.progress import Progress

COMMANDS = ("run", "shell", "replay", "runs", "doctor", "images", "cache", "bench")
TRANSCRIPTS = Path(__file__).parent / "transcripts"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The cache that commands use, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    return Cache()


def fill(cache: Cache, kind: str, number: int, size: int = 8192) -> Path:
    def build(made: Path) -> None:
        (made / "file").write_bytes(b"x" * size)

    return cache.entry(kind, {"number": number}, build, Progress())


# -- parsing and exit statuses


@pytest.mark.parametrize(
    "words",
    [
        (),
        *((c,) for c in COMMANDS),
        ("images", "build"),
        ("images", "kernels"),
        ("images", "lock"),
        ("cache", "prune"),
    ],
)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: emu")
    if not words:
        assert all(f"\n    {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nosuch",),
        ("shell", "dom7"),
        ("run", "--clock", "sundial"),
        ("cache", "prune", "--unused-days", "-1"),
        ("cache", "prune", "--unused-days", "1", "--all"),
    ],
)
def test_wrong_usage_is_status_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("no such thing", hint="get one"), EXIT_INPUT),
        (RigError("it broke", lines=["last words"]), EXIT_RIG),
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
    ],
)
def test_errors_become_exit_statuses(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(store, "images", fails)
    assert cli.main(["images"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("emu: ")
    if isinstance(error, InputError):
        assert printed.err == "emu: no such thing\n  get one\n"


def test_impossible_ring_is_refused_before_anything_starts(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--ring-pages", "3"]) == EXIT_INPUT
    assert cli.main(["shell", "--attach", "--ring-pages", "3"]) == EXIT_INPUT
    assert capsys.readouterr().err.count("not 3") == 2


def test_kernel_that_will_not_do_is_refused_before_anything_is_fetched(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, old = a_kernel(headers=False, series=False), a_kernel(headers=True, series=False)
    cloud = a_kernel("cloud", headers=True)
    bare_cloud = a_kernel("cloud", headers=False, series=False)
    no_headers, no_series = "no headers for it any more", "the driver series is for Linux 6.1"
    for words, message, hint in (
        ("--kernel debian-6.11", "no kernel 'debian-6.11'", "`emu images kernels` lists all"),
        ("--domu-kernel nonsense", "no kernel 'nonsense-6.1'", "debian-6.1"),
        (f"--kernel {cloud}", "can't be dom0's", f"--domu-kernel {cloud}"),
        (f"--kernel {bare}", no_headers, "(--front stock --back stock), or"),
        (f"--kernel {bare} --front stock", no_headers, "(--back stock), or"),
        (f"--domu-kernel {bare_cloud}", no_headers, "(--front stock), or"),
        (f"--kernel {old}", no_series, "--front stock --back stock"),
        (f"--domu-kernel {old}", no_series, "--front stock"),
    ):
        for command in (["run"], ["shell", "--attach"]):
            assert cli.main([*command, *words.split()]) == EXIT_INPUT, words
            first, second = capsys.readouterr().err.splitlines()
            assert message in first
            assert hint in second
    assert cli.main(["images", "build", "--kernel", cloud]) == EXIT_INPUT
    assert cli.main(["series", "--kernel", bare]) == EXIT_INPUT
    assert no_headers in capsys.readouterr().err
    assert not cache.entries()
    assert not (cache.root / "store/apt").exists()


def test_xen_that_is_not_packaged_is_refused(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["run"], ["shell", "-c", "true"], ["images", "build"]):
        assert cli.main([*command, "--xen", "4.18"]) == EXIT_INPUT
        assert "no Xen 4.18: Debian's suites have 4.14 (bullseye)" in capsys.readouterr().err
    assert cache.entries() == []


def test_missing_qemu_is_refused(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shell", "--qemu", "/nowhere/qemu", "-c", "true"]) == EXIT_INPUT
    assert "/nowhere/qemu is not there" in capsys.readouterr().err


# -- emu cache


def test_cache_lists_its_entries(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    entry = fill(cache, "guests", 1)
    assert cli.main(["cache", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(cache.root)
    assert [(e["kind"], e["key"]) for e in printed["entries"]] == [("guests", entry.name)]
    assert printed["bytes"] == printed["entries"][0]["bytes"] >= 8192
    assert cli.main(["cache"]) == 0
    assert entry.name[:15] in capsys.readouterr().out
    assert cli.main(["cache", "path"]) == 0
    assert capsys.readouterr().out == f"{cache.root}\n"


def test_prune_reports_entries_and_bytes(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    kept, gone = fill(cache, "guests", 1), fill(cache, "drivers", 2, size=3 << 20)
    assert cli.main(["cache", "prune"]) == 0
    assert "all was used within 7 days" in capsys.readouterr().out
    assert cli.main(["cache", "prune", "--all", "--kind", "drivers"]) == 0
    printed = capsys.readouterr().out
    assert f"removed drivers {gone.name[:8]} (3.0 MiB)" in printed
    assert "3.0 MiB freed" in printed
    assert kept.exists()
    assert not gone.exists()
    assert cli.main(["cache", "prune", "--all", "--kind", "nosuch"]) == EXIT_INPUT


def test_prune_leaves_what_another_process_uses(cache: Cache) -> None:
    used, idle = fill(cache, "guests", 1), fill(cache, "guests", 2)
    script = (
        "from emu.images.cache import Cache; from emu.progress import Progress\n"
        "assert Cache().find('guests', {'number': 1}); print('in use', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"in use\n"
        assert [entry.path for entry in store.prune(cache).entries] == [idle]
        assert used.exists()
        user.communicate(b"\n")
    assert [entry.path for entry in store.prune(cache).entries] == [used]


def test_prune_leaves_runs_that_go_on(cache: Cache) -> None:
    root = cache.root / "runs"
    with RunDir.create(root) as ended:
        ended.log("xen").write_bytes(b"x" * 10_000)
    with RunDir.create(root) as going:
        going.log("xen").write_bytes(b"x")
        (going.state / "overlay").write_bytes(b"x")
        assert {run.path for run in store.runs(cache)} == {ended.path, going.path}
        pruned = store.prune(cache, kinds={"runs"})
        assert pruned.runs == (ended.path,)
        assert pruned.freed >= 10_000
        assert (going.state / "overlay").exists()


# -- emu images


def test_empty_cache_has_no_images(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["images", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["images"]) == 0
    assert "emu images build" in capsys.readouterr().out


def test_image_is_named_by_its_lock(cache: Cache) -> None:
    lock = Lock.load()
    wanted = {"packages": lock_digest(lock, package_sets(xens.find("4.17"))), "kernel": "0" * 32}
    cache.entry("guests", wanted, lambda made: (made / "xen").touch(), Progress())
    cache.entry("guests", {"packages": "older"}, lambda made: (made / "xen").touch(), Progress())
    new, old = sorted(store.images(cache, lock), key=lambda image: not image.locked)
    assert new.locked
    assert "xen-hypervisor-4.17-amd64 4.17" in new.main_package
    assert (old.locked, old.packages, old.main_package) == (False, (), "")


def names(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert cli.main(["images", "kernels", *words]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_kernels_are_listed_by_name(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    every = names([], capsys)
    assert {"debian-6.1", "debian-6.12", "debian-7.3", "lab-6.1", "lab-7.3"} <= {*every}
    assert len(every) == len({*every}) > 100
    old = a_kernel(headers=True, series=False)
    line = kernel_specs.spec(old).version
    shown = names([line], capsys)
    assert old in shown
    assert all(f"-{line}" in name for name in shown)
    assert "debian-6.12" not in names(["6.1"], capsys)
    assert "debian-6.12" not in names(["12"], capsys)
    assert all(name.startswith("cloud-") for name in names(["cloud"], capsys))
    assert cli.main(["images", "kernels", "5.9"]) == 0
    assert "no kernel has the word '5.9'" in capsys.readouterr().out


def test_kernels_are_listed_with_what_they_cost(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(name: str) -> dict[str, Any]:
        assert cli.main(["images", "kernels", "--json", name]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return next(one for one in found if name in one["names"])

    default = listed("debian-6.1")
    assert (default["suite"], default["dom0"], default["drivers"]) == ("bookworm", True, "series")
    assert default["release"] in default["names"]
    assert 70e6 < default["bytes"] < default["source_bytes"] < 200e6
    assert default["cached"] == ""
    assert listed(a_kernel("cloud", headers=True))["dom0"] is False
    bare = listed(a_kernel(headers=False, series=False))
    assert (bare["drivers"], bare["source_bytes"]) == ("stock only", 0)
    assert listed(a_kernel(headers=True, series=False))["drivers"] == "no series"
    assert listed("lab-6.1")["suite"] == "built here"
    sets = ["kernel-debian-6.1", "headers-debian-6.1"]
    lock = Lock.load_all()
    for package in lock.packages(*sets):
        with (cache.store("debs") / package.file_name).open("wb") as deb:
            deb.truncate(package.size)
    assert listed("debian-6.1")["cached"] == "fetched"
    inputs = {"packages": lock_digest(lock, sets)}
    cache.entry("kernel-debian", inputs, lambda made: (made / "vmlinux").touch(), Progress())
    assert listed("debian-6.1")["cached"] == "unpacked"


def locked(name: str, version: str, archive: str = "bookworm") -> Package:
    digest = f"{abs(hash((name, version))):064x}"[-64:]
    return Package(archive, name, version, "amd64", digest, 1, ("dom0",))


def test_changes_of_a_renewed_lock() -> None:
    before = Lock("a", (locked("kmod", "1"), locked("gone", "3"), locked("same", "5")))
    after = Lock("b", (locked("kmod", "2"), locked("fresh", "4"), locked("same", "5")))
    found = [(c.name, c.before, c.after) for c in store.changes(before, after)]
    assert found == [("fresh", None, "4"), ("gone", "3", None), ("kmod", "1", "2")]


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "²"])
@pytest.mark.parametrize(
    "words", [("repeat", "--times"), ("mutants", "--jobs"), ("bench", "--repeat")]
)
def test_count_is_one_at_least(
    words: tuple[str, str], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([words[0], f"{words[1]}={number}"])
    assert ended.value.code == EXIT_USAGE
    assert f"argument {words[1]}: {number!r} is not 1, 2, 3, …" in capsys.readouterr().err


# -- how figures are printed


def test_sizes_and_times_for_people() -> None:
    assert [options.size(n) for n in (0, 1023, 1024, 5 << 20, 300 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "5.0 MiB",
        "300 MiB",
        "3.0 GiB",
    ]
    now = time.time()
    assert [options.ago(now - past, now) for past in (3, 300, 7300, 4e5)] == [
        "3 s ago",
        "5 min ago",
        "2 h ago",
        "5 days ago",
    ]


def test_smaps_rollup_is_parsed() -> None:
    memory = bench.read_rollup((TRANSCRIPTS / "smaps-rollup-qemu.txt").read_text())
    assert memory["Private_Dirty"] % 4096 == 0
    assert memory["Private_Dirty"] + memory["Private_Clean"] <= memory["Pss"] <= memory["Rss"]


def setting() -> bench.Setting:
    return bench.Setting("2015-05-22", 2, "a CPU", "TCG (no /dev/kvm)", 0.5, 8.0)


def test_bench_with_a_missed_target_has_not_held() -> None:
    dom0, fresh = bench.TARGETS["dom0_s"], bench.TARGETS["fresh_s"]
    skipped = bench.Result(fresh, (), "not asked for")
    good = bench.BenchReport(setting(), (bench.Result(dom0, (0.3, 0.7, 0.4)), skipped))
    assert good.held
    assert any("0.40 s   wanted 0.60 s; median of 3" in line for line in bench.lines(good))
    assert any("not measured   wanted 360 s; not asked for" in line for line in bench.lines(good))
    bad = bench.BenchReport(setting(), (bench.Result(dom0, (0.3, 0.7, 0.8)), skipped))
    assert not bad.held
    assert any(line.startswith("MISSED") for line in bench.lines(bad))
    assert bench.as_json(bad)["results"]["dom0_s"]["median"] == 0.7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("shell --driver-patches my.patch", "loaded with --attach alone"),
        ("shell --attach --driver-patches -", "- (standard input) is for `emu run` alone"),
        ("images build --driver-patches gone", "there is no driver patch gone"),
        ("images build --tree-drivers gone", "there is no directory"),
        ("images build --on stock", "drivers on stock without patches"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_drivers_that_nobody_can_build_are_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == EXIT_INPUT
    assert message in capsys.readouterr().err


def test_python_runs_the_package_as_the_command() -> None:
    command = [sys.executable, "-m", "emu", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"emu {__version__}\n"
