"""QEMU's command line, and a real QEMU with a guest of 3 KiB."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_guest

from emu.errors import InputError, RigError
from emu.machine import disks
from emu.machine.monitor import Refused
from emu.machine.qemu import Machine, MachineEnded
from emu.machine.rundir import RunDir, disk_full, sweep
from emu.machine.spec import TCG_CPU, Disk, MachineSpec, QemuFds, Recording, build_argv
from emu.machine.watch import GuestTrouble

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)
EMPTY = MachineSpec(xen=None, memory_mib=16)


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_guest.build(tmp_path_factory.mktemp("guest, with a space"))


@pytest.fixture
def rundir(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir.create(tmp_path / "runs, here") as rundir:
        yield rundir


def tiny(guest: Path, **more: object) -> MachineSpec:
    return replace(MachineSpec(xen=guest, memory_mib=32), **more)  # type: ignore[arg-type]


def argv(spec: MachineSpec, **more: bool) -> list[str]:
    files = {"xen": 3, "dom0": 4, "initrd": 5, "ram": 6, "disk0.0": 7, "disk0.1": 8}
    links = {"qmp": 20, "com1": 21, "com2": 22, "port.emu.agent": 23}
    return build_argv(spec, QemuFds(files, links), layers=(2,) * len(spec.disks), **more)


def after(option: str, words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


# The command line.


def test_modules_are_named_by_descriptor_with_commas_doubled() -> None:
    spec = MachineSpec(
        xen=Path("/a b/xen"),
        dom0_kernel=Path("/a,b/vmlinux"),
        initrd=Path("/c/initrd"),
        dom0_cmdline="console=ttyS1,115200 ro",
    )
    words = argv(spec)
    assert after("-kernel", words) == ["/proc/self/fd/3"]
    assert after("-initrd", words) == ["/proc/self/fd/4 console=ttyS1,,115200 ro,/proc/self/fd/5"]


def test_instruction_time_runs_in_one_thread() -> None:
    words = argv(replace(EMPTY, clock="icount"))
    assert after("-icount", words) == ["shift=0,sleep=off"]
    assert after("-rtc", words) == ["clock=vm"]
    assert after("-accel", words) == ["tcg,thread=single"]
    with pytest.raises(ValueError, match="instruction time needs TCG"):
        replace(EMPTY, clock="icount", accel="kvm")


def test_recorded_input_goes_through_the_log() -> None:
    log = Recording(Path("/a, b/log"), "replay")
    spec = replace(EMPTY, clock="icount", disks=(Disk(Path("/x"), readonly=True),), recording=log)
    words = argv(spec)
    assert after("-icount", words) == ["shift=0,sleep=off,rr=replay,rrfile=/a,, b/log"]
    *_, held_back = after("-blockdev", words)
    assert '"driver":"blkreplay"' in held_back
    assert '"image":"disk0-1"' in held_back
    assert '"read-only":true' in held_back
    assert any('"drive":"replay0"' in device for device in after("-device", words))
    with pytest.raises(ValueError, match="a recording needs instruction time"):
        replace(EMPTY, recording=log)


def test_cpu_follows_the_accelerator() -> None:
    assert after("-cpu", argv(EMPTY)) == [TCG_CPU]
    assert "-smap" in TCG_CPU
    assert after("-cpu", argv(replace(EMPTY, accel="kvm"))) == ["host"]


def test_disk_gets_an_overlay_without_a_path() -> None:
    spec = replace(EMPTY, disks=(Disk(Path("/x y/lun.raw"), serial="lun0"),))
    base, overlay = after("-blockdev", argv(spec))
    assert '"filename":"/proc/self/fd/7"' in base
    assert '"read-only":true' in base
    assert '"backing":"disk0-0"' in overlay
    assert '"read-only":false' in overlay
    assert "/x y" not in " ".join(argv(spec))


def test_links_are_descriptors() -> None:
    words = argv(replace(EMPTY, ports=("emu.agent",)))
    assert after("-chardev", words) == [
        *("socket,id=qmp,fd=20", "socket,id=com1,fd=21", "socket,id=com2,fd=22"),
        "socket,id=port0,fd=23",
    ]


def test_network_card_uses_an_inherited_socket_and_comes_last() -> None:
    mac = "52:54:00:0e:00:01"
    links = {"qmp": 20, "com1": 21, "com2": 22, "wire": 23}
    words = build_argv(replace(EMPTY, mac=mac), QemuFds({}, links))
    assert after("-netdev", words) == ["socket,id=wire,fd=23"]
    assert f'"mac":"{mac}"' in after("-device", words)[-1]
    # What others have stays where it is: a machine without a card keeps its checkpoints.
    assert words[: words.index("-netdev")] == build_argv(EMPTY, QemuFds({}, links))


def test_network_card_without_a_wire_is_refused(rundir: RunDir) -> None:
    with pytest.raises(ValueError, match="needs a wire"):
        Machine.start(replace(EMPTY, mac="52:54:00:0e:00:01"), rundir)


@needs_qemu
def test_machines_share_a_wire(rundir: RunDir, tmp_path: Path) -> None:
    one, other = socket.socketpair()
    cards = [replace(EMPTY, mac=f"52:54:00:0e:00:0{number}") for number in (1, 2)]
    with contextlib.ExitStack() as opened:
        second = opened.enter_context(RunDir.create(tmp_path / "other"))
        with one, other:
            first = opened.enter_context(Machine.start(cards[0], rundir, wire=one))
            neighbour = opened.enter_context(Machine.start(cards[1], second, wire=other))
        for machine in (first, neighbour):
            answer = machine.qmp("human-monitor-command", command_line="info network")
            assert "wire: index=0,type=socket" in answer
        neighbour.kill()
        assert first.qmp("query-status")["running"], "it ended with its neighbour"


# A run's directory.


def test_run_has_a_private_directory_that_a_sweep_leaves_alone(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "runs") as one, RunDir.create(tmp_path / "runs") as two:
        assert one.path != two.path
        assert one.path.stat().st_mode & 0o777 == 0o700
        (one.state / "file").touch()
        assert sweep(tmp_path / "runs", keep=0) == []
        assert (one.state / "file").exists()


def test_ended_runs_keep_their_logs_for_a_while(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for number in range(7):
        with RunDir.create(root) as rundir:
            rundir.log("console").write_text(f"run {number}")
            (rundir.state / "big").touch()
            # Names carry the time to a second; the order in it is not what is tested.
            rundir.path.rename(root / f"20150522-14000{number}-0000")
    RunDir.create(root).close()
    left = sorted(path.name for path in root.iterdir() if list(path.glob("*.log")))
    assert left == [f"20150522-14000{number}-0000" for number in range(2, 7)]
    assert not list(root.glob("*/state"))


def test_failed_runs_outlive_the_others(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for number in range(7):
        with RunDir.create(root) as rundir:
            rundir.log("console").touch()
            if number == 0:
                rundir.keep("tests/test_it.py::test_it")
            rundir.path.rename(root / f"20150522-14000{number}-0000")
    sweep(root)
    assert (root / "20150522-140000-0000/console.log").exists()
    assert not (root / "20150522-140001-0000").exists()
    sweep(root, keep_failed=0)
    assert not (root / "20150522-140000-0000").exists()


def test_state_of_a_killed_run_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from emu.machine.rundir import RunDir; run = RunDir.create(Path(sys.argv[1]));"
        "(run.state / 'big').touch(); run.log('xen').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(root)])
    (left,) = root.iterdir()
    assert (left / "state" / "big").exists()
    sweep(root)
    assert sorted(path.name for path in left.iterdir()) == ["lock", "xen.log"]


def test_full_disk_is_named(tmp_path: Path) -> None:
    error = disk_full(tmp_path / "not" / "there", "a checkpoint")
    assert error.message.startswith(f"no room for a checkpoint in {tmp_path}/not/there (")
    assert "MiB left" in error.message


def test_virtual_size_of_a_disk(tmp_path: Path) -> None:
    raw, bad = tmp_path / "raw", tmp_path / "bad.qcow2"
    raw.write_bytes(b"x" * 513)
    bad.write_bytes(b"not an image")
    assert disks.virtual_size(Disk(raw)) == 1024
    with pytest.raises(InputError, match="is not a qcow2 image"):
        disks.virtual_size(Disk(bad, format="qcow2"))


# A real QEMU.


@needs_qemu
def test_files_with_spaces_and_commas_reach_the_guest(
    guest: Path, rundir: RunDir, tmp_path: Path
) -> None:
    kernel, initrd = tmp_path / "a kernel, so called", tmp_path / "an initrd"
    kernel.write_bytes(b"KERNEL..")
    initrd.write_bytes(b"INITRD..")
    spec = tiny(guest, dom0_kernel=kernel, initrd=initrd, dom0_cmdline="one=1,2 two")
    with Machine.start(spec, rundir) as machine:
        machine.xen.expect("ready\n", 20)
        shown = machine.xen.before
        # Equally long names, however many descriptors were open: the guest's bytes stay equal.
        assert re.search(r"/proc/self/fd/\d{3} one=1,2 two holds KERNEL\.\.\n", shown)
        assert "holds INITRD..\n" in shown
        machine.dom0.send("k")
        machine.dom0.expect_exact("count 1\n", 20)
        assert machine.qmp("query-status")["running"] is True
    merged = rundir.log("console").read_text()
    assert " xen | ready\n" in merged
    assert " dom0 | count 1\n" in merged
    assert rundir.log("dom0").read_text().endswith("] count 1\n")


@needs_qemu
def test_errors_of_qemu_at_its_start_are_shown(rundir: RunDir) -> None:
    with pytest.raises(RigError, match=r"QEMU did not start \(status 1\)") as caught:
        Machine.start(replace(EMPTY, cpu="no-such-cpu"), rundir)
    assert any("no-such-cpu" in line for line in caught.value.lines)
    with pytest.raises(InputError, match=r"can't open .*nowhere: No such file"):
        Machine.start(replace(EMPTY, xen=Path("/nowhere")), rundir)
    with pytest.raises(InputError, match="qemu-of-tomorrow is not installed"):
        Machine.start(replace(EMPTY, qemu="qemu-of-tomorrow"), rundir)


@needs_qemu
def test_refused_command_is_an_error_of_its_own(rundir: RunDir) -> None:
    with Machine.start(EMPTY, rundir) as machine:
        with pytest.raises(Refused, match="QEMU refused no-such-command"):
            machine.qmp("no-such-command")
        assert machine.qmp("query-version")["qemu"]["major"] >= 7


@needs_qemu
def test_death_of_qemu_ends_every_wait(guest: Path, rundir: RunDir) -> None:
    with Machine.start(tiny(guest), rundir) as machine:
        machine.xen.expect("ready\n", 20)
        os.kill(machine.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(
            RigError, match=r"QEMU ended \(killed by SIGKILL\) while waiting for it"
        ):
            machine.dom0.expect("never", 60, "it")
        assert time.monotonic() - began < 5
        with pytest.raises(RigError, match="QEMU ended"):
            machine.qmp("query-status")


@needs_qemu
def test_reboot_of_the_guest_ends_the_machine(guest: Path, rundir: RunDir) -> None:
    with Machine.start(tiny(guest), rundir) as machine:
        machine.xen.expect("ready\n", 20)
        machine.dom0.send("R")
        assert machine.wait(20) == 0
        with pytest.raises(RigError, match=r"QEMU ended \(status 0, guest-reset\)"):
            machine.watch.check()


@needs_qemu
def test_trouble_of_xen_ends_a_wait_for_dom0(guest: Path, rundir: RunDir) -> None:
    with Machine.start(tiny(guest), rundir) as machine:
        machine.xen.expect("ready\n", 20)
        with machine.watch.expect_finding("Xen panic", guest="xen"):
            machine.dom0.send("X")
        machine.dom0.send("X")
        with pytest.raises(
            GuestTrouble, match="xen: Xen panic while waiting for the prompt"
        ) as caught:
            machine.dom0.expect("never", 30, "the prompt")
        assert "(XEN) as asked" in caught.value.lines


@needs_qemu
def test_console_flood_does_not_delay_qmp(guest: Path, rundir: RunDir) -> None:
    with Machine.start(tiny(guest), rundir) as machine:
        machine.xen.expect("ready\n", 20)
        machine.dom0.send("F")
        time.sleep(1.0)
        began = time.monotonic()
        assert machine.qmp("query-status")["running"] is True
        assert time.monotonic() - began < 1
    assert "prints without end" in rundir.log("dom0").read_text()


@needs_qemu
def test_ports_are_sockets(rundir: RunDir) -> None:
    with Machine.start(replace(EMPTY, ports=("emu.agent", "other")), rundir) as machine:
        with contextlib.closing(machine.port("emu.agent")) as port:
            port.send(b"x")
        with pytest.raises(KeyError):
            machine.port("emu.agent")
        assert len(machine.qmp("query-chardev")) == 5


@needs_qemu
def test_writes_to_a_disk_end_with_qemu(rundir: RunDir, tmp_path: Path) -> None:
    image = tmp_path / "a disk, with a comma"
    image.write_bytes(b"\x11" * 2**20)
    spec = replace(EMPTY, disks=(Disk(image),))
    with Machine.start(spec, rundir) as machine:
        qemu_io(machine, "read -P 0x11 0 4096")
        qemu_io(machine, "write -P 0x22 0 4096")
        qemu_io(machine, "read -P 0x22 0 4096")
        assert list(rundir.state.iterdir()) == []
    assert image.read_bytes() == b"\x11" * 2**20


def qemu_io(machine: Machine, command: str) -> None:
    """Read or write through disk0's device, as its guest would."""
    line = f'qemu-io -d /machine/peripheral/disk0/virtio-backend "{command}"'
    answer = machine.qmp("human-monitor-command", command_line=line)
    log = machine.rundir.log("qemu").read_text()
    assert not answer, answer
    assert "failed" not in log, log


ORPHAN = """
import sys, time
from pathlib import Path
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import MachineSpec
spec = MachineSpec(xen=None, memory_mib=16, ports=("emu.agent",))
machine = Machine.start(spec, RunDir.create(Path(sys.argv[1])), savable=True)
print(machine.pid, flush=True)
time.sleep(600)
"""


@needs_qemu
def test_qemu_does_not_outlive_a_killed_runner(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdout
        qemu = int(runner.stdout.readline())
        assert Path(f"/proc/{qemu}/comm").read_text().startswith("qemu")
        runner.send_signal(signal.SIGKILL)
    assert within(5, lambda: not alive(qemu))
    left = [path for path in (tmp_path / "runs").rglob("*") if not path.is_dir()]
    assert {path.suffix or path.name for path in left} == {".log", "lock"}


@needs_qemu
def test_qemu_does_not_start_after_its_runner_has_died() -> None:
    from emu.machine.process import _ONLY_UNDER_PARENT

    not_my_parent = str(os.getpid() + 100_000)
    made = subprocess.run(["sh", "-c", _ONLY_UNDER_PARENT, not_my_parent, "echo", "ran"], stdout=-1)
    assert made.stdout == b""
    made = subprocess.run(
        ["sh", "-c", _ONLY_UNDER_PARENT, str(os.getpid()), "echo", "ran"], stdout=-1
    )
    assert made.stdout == b"ran\n"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return False


def test_machine_ended_is_a_rig_error() -> None:
    assert MachineEnded("x").exit_code == RigError("x").exit_code
