"""Programs of this machine: refused, failed, reported while they run, killed at their limit."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from emu import runprogram
from emu.errors import InputError, RigError
from emu.progress import Progress
from emu.runprogram import bounded, follow, run


class Ticks(Progress):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tick(self, what: str, done: float | None = None, total: float | None = None) -> None:
        self.lines.append(what)


@pytest.fixture(autouse=True)
def _unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "1")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits for its parent."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_output_and_status() -> None:
    done = run(["sh", "-c", "cat; echo oops >&2; exit 3"], data=b"in\n")
    assert (done.status, done.text, done.errors) == (3, "in\n", "oops\n")


def test_missing_program_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="emu-no-such is not installed") as refused:
        run(["emu-no-such"], "it failed", missing="apt-get install no-such")
    assert refused.value.hint == "apt-get install no-such"


def test_failure_has_the_last_lines() -> None:
    with pytest.raises(InputError, match="it cannot be built") as failed:
        run(["sh", "-c", "seq 9; echo bad >&2; exit 1"], "it cannot be built", error=InputError,
            lines=3, hint="mend it")  # fmt: skip
    assert failed.value.lines == ("8", "9", "bad")
    assert failed.value.hint == "mend it"


def test_program_of_roots_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(["depmod", "--version"], "depmod failed").text.startswith("kmod")


def test_long_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runprogram, "QUIET", 0.1)
    ticks = Ticks()
    assert run(["sh", "-c", "sleep 0.5; echo done"], "failed", progress=ticks).text == "done\n"
    assert ticks.lines
    assert ticks.lines[0].startswith("waiting for sh -c sleep 0.5; echo done (")


def test_slow_reader_gets_all_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runprogram, "QUIET", 0.1)
    data = bytes(1 << 20)
    done = runprogram.run(["sh", "-c", "sleep 0.5; wc -c"], data=data)
    assert int(done.text) == len(data)


def test_program_is_killed_at_its_limit(tmp_path: Path) -> None:
    script = f"echo started; sleep 60 & echo $! > {tmp_path}/pid; wait"
    began = time.monotonic()
    with pytest.raises(RigError, match=r"^sh -c .*no end after 1 s, killed") as slow:
        run(["sh", "-c", script], "failed", limit=1)
    assert time.monotonic() - began < 10
    assert slow.value.lines == ("started",)
    assert has_ended(int((tmp_path / "pid").read_text())), "a child of it lives"


def test_limit_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "20")
    assert run(["sleep", "0.5"], "failed", limit=0.1).status == 0


def test_silent_build_is_reported_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runprogram, "QUIET", 0.1)
    ticks, lines = Ticks(), list[str]()
    command = ["sh", "-c", f"echo $$ > {tmp_path}/pid; echo CC x.o; sleep 60"]
    with pytest.raises(RigError, match=r"output of sh -c .*no end after 1 s") as slow:
        follow(command, lines.append, cwd=tmp_path, env=os.environ, progress=ticks, silence=1)
    assert lines == ["CC x.o"]
    assert slow.value.lines == ("CC x.o",)
    assert ticks.lines[0].startswith("waiting for output of sh -c ")
    assert has_ended(int((tmp_path / "pid").read_text()))


def test_build_that_prints_has_no_limit(tmp_path: Path) -> None:
    script = "for n in 1 2 3 4 5 6; do echo $n; sleep 0.3; done; printf end; exit 4"
    status, lines = follow(
        ["sh", "-c", script], lambda line: None, cwd=tmp_path, env=os.environ,
        progress=Progress(), silence=1,
    )  # fmt: skip
    assert (status, lines) == (4, [*"123456", "end"])


def feed_a_reader_that_is_stuck() -> None:
    with (
        subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE) as process,
        bounded(process, "packing the tree", 0.3),
    ):
        assert process.stdin is not None
        process.stdin.write(bytes(1 << 20))


def test_stuck_reader_of_a_pipe_does_not_block() -> None:
    with pytest.raises(RigError, match="packing the tree: no end after 0 s, killed"):
        feed_a_reader_that_is_stuck()
