"""Recordings: found, refused if they can't be replayed, compared with their replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emu import cli
from emu.commands import options
from emu.commands.parser import parser
from emu.errors import EXIT_INPUT, InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.lab import replay
from emu.machine.rundir import RunDir
from emu.stack import recording
from emu.stack.wish import Wish

NOTE = {"wish": {}, "key": {}, "began": "", "instructions": 5}


def recorded(run: Path, **changed: object) -> Path:
    run.mkdir(exist_ok=True)
    (run / recording.NOTE).write_text(json.dumps({**NOTE, **changed}))
    (run / recording.LOG).write_bytes(b"log")
    return run


def test_recording_is_found(tmp_path: Path) -> None:
    found = recording.find(recorded(tmp_path))
    assert (found.log, found.instructions) == (tmp_path / recording.LOG, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"instructions": 0}, "has no end"),
        ({"more": 1}, "holds no recording"),
    ],
)
def test_half_a_recording_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recording.find(recorded(tmp_path, **changed))


def test_a_run_without_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(tmp_path / "nowhere")]) == EXIT_INPUT
    assert "nowhere holds no recording" in capsys.readouterr().err
    (recorded(tmp_path) / recording.LOG).unlink()
    with pytest.raises(InputError, match=f"{recording.LOG} is missing"):
        recording.find(tmp_path)


def test_the_newest_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run in .* was recorded"):
        recording.newest(tmp_path)
    runs = [recorded(tmp_path / f"20150522-14031{n}-7f3a") for n in (3, 2)]
    (tmp_path / "20150522-140314-7f3a").mkdir()
    assert recording.newest(tmp_path) == runs[0]


def test_recording_of_another_version_is_refused(tmp_path: Path) -> None:
    run = recorded(tmp_path, wish={"domu": {}, "sails": 3})
    with pytest.raises(InputError, match=r"made by another version.*sails"):
        replay.replay(run, BuildContext(Cache(tmp_path / "cache")))


def test_recording_outlives_its_run(tmp_path: Path) -> None:
    with RunDir.create(tmp_path) as run:
        run.log("xen").write_text("line\n")
        recorded(run.path)
    assert recording.find(run.path).instructions == 5


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"clock": "wall", "qemu": "patched"}, "counts instructions"),
        ({"clock": "icount", "qemu": "system"}, "records nothing"),
        ({"accel": "kvm"}, "needs TCG"),
    ],
)
def test_wish_that_can_not_be_recorded_is_refused(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Wish(record=True, **wish)


@pytest.mark.parametrize(
    ("words", "clock", "qemu"),
    [
        ([], "wall", "system"),
        (["--record"], "icount", "patched"),
        (["--record", "--qemu", "/my/qemu"], "icount", "/my/qemu"),
    ],
)
def test_record_option_implies_clock_and_qemu(
    words: list[str], clock: str, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMU_QEMU", raising=False)
    wish = options.wish_from_options(parser(["run"]).parse_args(["run", *words]))
    assert (wish.record, wish.clock, wish.qemu) == (bool(words), clock, qemu)


# Consoles.

LOG = "[    0.1] one\n[    0.2] two\n[    0.3] thr"


def test_comparison_ignores_times_and_a_cut_line() -> None:
    output = LOG.replace("0.2", "7.9").replace("thr", "three")
    assert replay.compare("xen", LOG, output).differs is None


@pytest.mark.parametrize(
    ("output", "differs"),
    [
        (LOG.replace("one", "eins"), ("one", "eins")),
        ("[    0.1] one\n[    0.2] tw", ("two", "(nothing more)")),
    ],
)
def test_comparison_finds_the_first_difference(output: str, differs: tuple[str, str]) -> None:
    found = replay.compare("xen", LOG, output)
    assert (found.recorded, found.differs) == (2, differs)
