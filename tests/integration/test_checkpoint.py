"""Checkpoints of a real QEMU with a guest that counts in RAM."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_guest
from test_qemu import qemu_io

from emu.errors import RigError
from emu.machine import checkpoint, ram
from emu.machine.checkpoint import CheckpointBroken
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import Clock, Disk, MachineSpec
from emu.machine.watch import GuestTrouble

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> MachineSpec:
    directory = tmp_path_factory.mktemp("guest, again")
    (directory / "disk").write_bytes(b"\x11" * 2**20)
    return MachineSpec(
        xen=tiny_guest.build(directory),
        memory_mib=64,
        disks=(Disk(directory / "disk"),),
        ports=("emu.agent",),
    )


@pytest.fixture
def rundir(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir.create(tmp_path / "runs") as rundir:
        yield rundir


def count(machine: Machine) -> int:
    """Let the guest add one; its number then."""
    machine.dom0.send("k")
    machine.dom0.expect(r"count (\d+)\n", 20)
    return int(machine.dom0.match.group(1))


def frozen(spec: MachineSpec, rundir: RunDir, directory: Path, counted: int = 3) -> Path:
    """A checkpoint of a guest that has counted, and whose disk was written."""
    with Machine.start(spec, rundir, savable=True) as machine:
        machine.xen.expect("ready\n", 20)
        for number in range(1, counted + 1):
            assert count(machine) == number
        qemu_io(machine, "write -P 0x22 0 4096")
        checkpoint.save(machine, directory)
        assert not machine.running
    return directory


@needs_qemu
@pytest.mark.parametrize("clock", ["wall", "icount"])
def test_runs_start_from_the_same_state(
    spec: MachineSpec, rundir: RunDir, tmp_path: Path, clock: Clock
) -> None:
    spec = replace(spec, clock=clock)
    directory = frozen(spec, rundir, tmp_path / "a checkpoint, frozen")
    before = {path: path.read_bytes() for path in directory.iterdir()}
    for _ in range(2):
        with checkpoint.load(spec, directory, rundir) as machine:
            assert count(machine) == 4
            qemu_io(machine, "read -P 0x22 0 4096")
            qemu_io(machine, "read -P 0x11 4096 4096")
            qemu_io(machine, "write -P 0x33 0 8192")
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert spec.disks[0].path.read_bytes() == b"\x11" * 2**20


@needs_qemu
def test_runs_from_one_checkpoint_at_once(
    spec: MachineSpec, rundir: RunDir, tmp_path: Path
) -> None:
    directory = frozen(spec, rundir, tmp_path / "frozen")
    with (
        RunDir.create(tmp_path / "runs") as other,
        checkpoint.load(spec, directory, rundir) as one,
        checkpoint.load(spec, directory, other) as two,
    ):
        assert [count(one), count(one), count(two), count(one)] == [4, 5, 4, 6]


@needs_qemu
def test_checkpoint_is_small(spec: MachineSpec, rundir: RunDir, tmp_path: Path) -> None:
    directory = frozen(spec, rundir, tmp_path / "frozen")
    assert (directory / "ram").stat().st_size == 64 * 2**20
    used = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
    assert used < 4 * 2**20
    assert (directory / "state").stat().st_size < 2**19  # no page of RAM in it


@needs_qemu
def test_paused_start_does_not_run(spec: MachineSpec, rundir: RunDir, tmp_path: Path) -> None:
    directory = frozen(spec, rundir, tmp_path / "frozen")
    with checkpoint.load(spec, directory, rundir, paused=True) as machine:
        assert machine.qmp("query-status")["running"] is False
        machine.resume()
        assert count(machine) == 4


@needs_qemu
@pytest.mark.parametrize("damage", ["no ram", "short ram", "short state", "no state", "meta"])
def test_damaged_checkpoint_is_broken(
    spec: MachineSpec, rundir: RunDir, tmp_path: Path, damage: str
) -> None:
    directory = frozen(spec, rundir, tmp_path / "frozen", counted=0)
    if damage == "meta":
        (directory / "meta.json").write_text("{")
    else:
        how, name = damage.split()
        path = directory / name
        os.truncate(path, path.stat().st_size // 2)
        if how == "no":
            path.unlink()
    with pytest.raises(CheckpointBroken) as caught:
        checkpoint.load(spec, directory, rundir)
    assert str(directory) in caught.value.message


@needs_qemu
def test_checkpoint_fits_one_machine_only(
    spec: MachineSpec, rundir: RunDir, tmp_path: Path
) -> None:
    directory = frozen(spec, rundir, tmp_path / "frozen", counted=0)
    for other in (
        replace(spec, clock="icount"),
        replace(spec, ports=()),
        replace(spec, xen_cmdline="other"),
        replace(spec, memory_mib=128),
    ):
        with pytest.raises(CheckpointBroken, match="was made for another machine"):
            checkpoint.load(other, directory, rundir)


@needs_qemu
def test_machine_in_trouble_is_not_saved(spec: MachineSpec, rundir: RunDir, tmp_path: Path) -> None:
    with Machine.start(spec, rundir, savable=True) as machine:
        machine.xen.expect("ready\n", 20)
        machine.dom0.send("X")
        machine.xen.expect_exact("Panic", 20)
        with pytest.raises(GuestTrouble, match="Xen panic"):
            checkpoint.save(machine, tmp_path / "frozen")


@needs_qemu
def test_machine_that_is_not_savable_is_not_saved(
    spec: MachineSpec, rundir: RunDir, tmp_path: Path
) -> None:
    with (
        Machine.start(spec, rundir) as machine,
        pytest.raises(ValueError, match="savable=True"),
    ):
        checkpoint.save(machine, tmp_path / "frozen")


@needs_qemu
def test_full_disk_while_saving_is_named(
    spec: MachineSpec, rundir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ram, "_pwrite", full)
    with pytest.raises(RigError, match=r"no room for a guest's RAM in .*frozen/ram"):
        frozen(spec, rundir, tmp_path / "frozen", counted=0)


@needs_qemu
def test_inputs_hold_versions_and_no_path(spec: MachineSpec) -> None:
    inputs = checkpoint.checkpoint_inputs(spec)
    assert inputs["qemu"].startswith("QEMU emulator version ")
    assert len(inputs["qemu_sha256"]) == 64
    text = json.dumps(inputs)
    assert str(spec.disks[0].path.parent) not in text
    assert inputs == checkpoint.checkpoint_inputs(replace(spec))
    assert inputs != checkpoint.checkpoint_inputs(replace(spec, smp=2))


def test_zero_pages_are_not_stored(tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = bytes(ram.PAGE) + b"\x00x" + bytes(3 * 2**21) + b"end"
    source.write_bytes(content)
    fd = os.open(source, os.O_RDONLY)
    try:
        written = ram.write_sparse(fd, tmp_path / "copy")
    finally:
        os.close(fd)
    assert (tmp_path / "copy").read_bytes() == content
    assert written <= 2 * ram.PAGE
    assert (tmp_path / "copy").stat().st_blocks * 512 <= 4 * ram.PAGE
