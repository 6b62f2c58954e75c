"""What QEMU records of a machine, replayed: the guests do the same again, word by word.

Stock QEMU records nothing of what comes in so (qemu-patches/REPLAY.md). With our patches a
whole host is recorded, Xen, dom0 with its LUN, and a domU, and `emu replay` needs no input.
"""

from __future__ import annotations

import json
import re
import socket
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from emu_command import run_emu

from emu.emulator import choice as emulator
from emu.emulator import faults
from emu.errors import EXIT_HELD, EXIT_INPUT
from emu.images.context import BuildContext
from emu.machine.qemu import Machine, MachineEnded
from emu.machine.rundir import RunDir
from emu.machine.spec import MachineSpec, Recording
from emu.machine.watch import WaitTimeout
from emu.stack.recording import NOTE

LINE = (string.ascii_letters + string.digits)[:50] * 2
"""What the guest waits for: six times what the FIFO of a serial port holds."""


@pytest.fixture
def spec(context: BuildContext) -> MachineSpec:
    """The bare guest that echoes its serial port."""
    guest = faults.build(context) / faults.SERIAL_RECORDED
    return MachineSpec(xen=guest, cpu=faults.CPU, clock="icount", memory_mib=64)


def output(spec: MachineSpec, recording: Recording, line: str = "") -> str:
    """The guest's output while it is recorded or replayed."""
    spec = replace(spec, recording=recording)
    with RunDir.create() as rundir, Machine.start(spec, rundir) as machine:
        machine.xen.expect("ready", 10, "the guest")
        if line:
            machine.xen.send(line)
        machine.xen.expect("right", 10, "the guest to say the line again")
        machine.stop()
        # Not before: a line is in the log when it has ended.
        return rundir.log("xen").read_text()


def test_stock_qemu_does_not_replay_input(spec: MachineSpec, tmp_path: Path) -> None:
    """Mended by patch 6. Through `-serial`, which it records, patches 7 and 9 have to help, too."""
    log = tmp_path / "log"
    assert LINE in output(spec, Recording(log, "record"), LINE)
    with pytest.raises((WaitTimeout, MachineEnded)):
        output(spec, Recording(log, "replay"))


@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_patched_qemu_replays_input(
    spec: MachineSpec, context: BuildContext, tmp_path: Path
) -> None:
    spec = replace(spec, qemu=emulator.program("patched", context))
    log = tmp_path / "a, log"
    assert LINE in output(spec, Recording(log, "record"), LINE)
    assert LINE in output(spec, Recording(log, "replay"))


# By the commands.


def emu(*words: str) -> subprocess.CompletedProcess[str]:
    """The command, with half an hour to build what is missing."""
    return run_emu(*words, timeout=1800)


def recorded_in(output: str) -> str:
    """The run that a message names for a replay."""
    found = re.search(r"recorded: emu replay (\S+)", output)
    assert found is not None, output
    return found[1]


@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--cold",), id="from its boot"),
        pytest.param(("--kernel", "debian-6.12"), id="6.12"),
        pytest.param(("--domu", "pvh"), id="pvh"),
        pytest.param(
            ("--domu", "pvh", "--qemu", "patched-10.2"), id="pvh on 10.2", marks=pytest.mark.long
        ),
    ],
)
def test_run_is_replayed(options: tuple[str, ...]) -> None:
    """Needs patches 6 to 10; patch 11 for what 6.12's checkpoint counts; with PVH 12 and 13.

    On 10.2 patch 14, too.
    """
    done = emu("run", "--record", "--data", "1", *options)
    assert done.returncode == EXIT_HELD, done.stderr
    run = recorded_in(done.stderr)
    again = emu("replay", run)
    assert again.returncode == EXIT_HELD, again.stderr
    assert re.search(r"^xen: [1-9]\d+ lines, as recorded$", again.stdout, re.MULTILINE)


@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_replay_with_other_files_is_refused() -> None:
    done = emu("run", "--record", "--data", "1")
    run = Path(recorded_in(done.stderr))
    note = json.loads((run / NOTE).read_text())
    changed = {"key": {**note["key"], "qemu": "another"}, "began": "of another checkpoint"}
    for name, output in (("key", "with another qemu"), ("began", "made anew since")):
        (run / NOTE).write_text(json.dumps({**note, name: changed[name]}))
        refused = emu("replay", str(run))
        assert refused.returncode == EXIT_INPUT
        assert output in refused.stderr


@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_failed_test_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(host, lun):\n"
        "    assert host.create(disk=lun, ring_pages=2).ring(lun).pages == 4\n"
    )
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--record"]
    failed = subprocess.run(
        pytest_, cwd=tmp_path, capture_output=True, text=True, timeout=1800
    ).stdout
    assert "assert 2 == 4" in failed
    again = emu("replay", recorded_in(failed))
    assert again.returncode == EXIT_HELD, again.stderr


@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_debugger_stops_and_continues_a_replay() -> None:
    run = recorded_in(emu("run", "--record", "--data", "1").stderr)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    replaying = subprocess.Popen(
        [sys.executable, "-m", "emu.cli", "replay", run, "--gdb", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with replaying:
        assert replaying.stderr is not None
        assert any("waits for gdb" in line for line in replaying.stderr)
        with socket.create_connection(("127.0.0.1", port), 60) as gdb:
            before = asked(gdb, "g")
            assert asked(gdb, "s").startswith("T05")  # one instruction, and SIGTRAP
            assert asked(gdb, "g") != before
            assert asked(gdb, "D") == "OK"
        output, _ = replaying.communicate(timeout=600)
    assert replaying.returncode == EXIT_HELD
    assert re.search(r"^dom0: \d+ lines, as recorded$", output, re.MULTILINE)


def asked(gdb: socket.socket, command: str) -> str:
    """What QEMU answers to a packet of gdb's remote protocol."""
    gdb.sendall(f"+${command}#{sum(command.encode()) % 256:02x}".encode())
    output = b""
    while not re.search(rb"\$[^#]*#..", output):
        output += gdb.recv(65536)
    return output.decode().partition("$")[2].partition("#")[0]
