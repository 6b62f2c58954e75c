"""emu-io without Xen: its account describes a file's content and wrong data in reads."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sanitized
from processes import gone

from emu import paths
from emu.images import agent
from emu.images.cache import Cache
from emu.xen.account import IoAccount, parse_account

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def program() -> Path:
    """emu-io, with ASan and UBSan."""
    return sanitized.program("emu-io")


@pytest.fixture
def disk() -> Iterator[Path]:
    # Beside the cache: tmpfs has no direct I/O on older kernels.
    with Cache().scratch("emu-io") as folder:
        file = folder / "disk"
        file.write_bytes(bytes(1 << 20))
        yield file


def run(
    program: Path,
    disk: Path,
    *words: str,
    meanwhile: Callable[[int], object] = lambda process: None,
) -> IoAccount:
    file = disk.with_name("account")
    # In the background emu-io has no standard error: a sanitizer's report goes to a file.
    options = sanitized.reports(disk.with_name("report"))
    started = subprocess.run(
        [program, disk, file, *words],
        capture_output=True,
        text=True,
        check=True,
        env=sanitized.environment(**options),
    )
    process = int(started.stdout)
    try:
        time.sleep(0.3)
        meanwhile(process)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(process, signal.SIGTERM)
    until = time.monotonic() + 10
    while (account := show(program, file)).state == "running":
        assert time.monotonic() < until, "emu-io did not end"
        time.sleep(0.01)
    assert gone(process), "emu-io did not end"
    for report in disk.parent.glob("report.*"):
        raise AssertionError(report.read_text())
    return account


def show(program: Path, file: Path) -> IoAccount:
    shown = subprocess.run(
        [program, "show", file], stdout=-1, check=True, env=sanitized.environment()
    )
    return parse_account(shown.stdout)


@pytest.mark.parametrize("words", [[], ["bytes=16384", "outstanding=5", "stride=16384"]])
def test_acknowledged_writes_are_on_disk(program: Path, disk: Path, words: list[str]) -> None:
    account = run(program, disk, *words)
    assert account.state == "stopped"
    assert not account.in_flight
    assert not account.failed
    writes = {asked.block: asked.generation for asked in account.asked if asked.writes}
    reads = sum(not asked.writes for asked in account.asked)
    assert 0.15 < reads / len(account.asked) < 0.35
    content = disk.read_bytes()
    for block, generation in writes.items():
        at = account.start + block * account.stride
        assert content[at : at + account.size] == account.content(block, generation)


def test_read_reports_wrong_data(program: Path, disk: Path) -> None:
    def spoil(_: int) -> None:
        """Overwrite block 3 with zeros from its third KiB on, repeatedly."""
        file = os.open(disk, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as zeros:
            for _ in range(1000):
                os.pwritev(file, [memoryview(zeros)[:2048]], 26624)
        os.close(file)

    account = run(program, disk, "blocks=40", "reads=60", meanwhile=spoil)
    found = {asked.found for asked in account.asked if asked.found}
    assert (0, 0, 2048) in found
    assert {asked.block for asked in account.asked if asked.found} == {3}


def test_rate_limits_requests(program: Path, disk: Path) -> None:
    account = run(program, disk, "rate=100")
    assert 10 < len(account.asked) < 80


def test_process_sleeps_until_next_request_is_due(program: Path, disk: Path) -> None:
    """Frequent wake-ups of an emulated guest take CPU time from all others."""
    woken: list[int] = []

    def watch(process: int) -> None:
        for _ in range(2):
            status = Path(f"/proc/{process}/status").read_text()
            woken.append(int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]))
            time.sleep(1)

    run(program, disk, "rate=20", meanwhile=watch)
    assert 10 < woken[1] - woken[0] < 70


def test_full_account_ends_run(program: Path, disk: Path) -> None:
    account = run(program, disk, "events=1000", "outstanding=8")
    assert account.state == "full"
    assert not account.in_flight


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["outstanding=8", "blocks=8"], "more blocks than requests"),
        (["bytes=1000"], "whole pages"),
        (["colour=red"], "invalid argument colour=red"),
        (["outstanding=4294967304"], "invalid argument outstanding=4294967304"),
        (["rate=fast"], "invalid argument rate=fast"),
    ],
)
def test_invalid_arguments_are_refused(
    program: Path, disk: Path, words: list[str], message: str
) -> None:
    done = subprocess.run(
        [program, disk, "/dev/null", *words],
        capture_output=True,
        text=True,
        env=sanitized.environment(),
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_failed_allocation_is_reported(disk: Path) -> None:
    """posix_memalign() returns its error, and need not set errno."""
    folder = paths.guest_images() / "agent"
    sources = [*(folder / name for name in agent.SOURCES["emu-io"]), SUPPORT / "no_memalign.c"]
    program = sanitized.build(
        "emu-io-no-memory", folder, sources, flags=["-Wl,--wrap=posix_memalign"]
    )
    done = subprocess.run(
        [program, disk, disk.with_name("account"), "outstanding=2", "events=1000"],
        capture_output=True,
        text=True,
        env=sanitized.environment(),
    )
    assert done.returncode == 2
    assert done.stderr == "emu-io: memory: Cannot allocate memory\n"


def test_missing_disk_is_reported(program: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [program, tmp_path / "absent", tmp_path / "account"],
        capture_output=True,
        text=True,
        env=sanitized.environment(),
    )
    assert done.returncode == 2
    assert "absent: No such file" in done.stderr
