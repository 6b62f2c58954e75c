"""What stock QEMU gets wrong for Xen, and the same on QEMU with our patches.

Each fault is shown twice: by a bare guest (`emu.emulator.faults`), and by Xen on a CPU that
lacks what the other faults ask for and has what this one is about. On a stock QEMU that has
the fault something dies; on the patched one nothing does, with the plain model. The tests on
the patched QEMU need the patches that they name: `make test-qemu` builds it.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from emu_command import run_emu

from emu.emulator import build as qemubuild
from emu.emulator import choice as emulator
from emu.emulator import faults
from emu.emulator.build import PATCHED
from emu.emulator.faults import FAULTS, Fault
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.machine import checkpoint
from emu.machine.identity import qemu_version
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.spec import MachineSpec
from emu.machine.watch import GuestTrouble
from emu.rig import RigHost, RigLun
from emu.series import git_am
from emu.stack.stack import Artifacts
from emu.stack.wish import Wish
from emu.xen.config import DomuConfig
from emu.xen.host import Host

PVH = DomuConfig(kind="pvh")
BOOT = 120.0
SMEP, SMAP = 1 << 7, 1 << 20
"""Bits of CPUID leaf 7's EBX (Intel SDM volume 2, CPUID), Xen's sixth word of hw_caps."""
OURS = [
    pytest.param(
        name,
        marks=[pytest.mark.qemu, pytest.mark.timeout(3600)]
        + ([] if name == "patched" else [pytest.mark.long]),
    )
    for name in PATCHED
]


def fault(name: str) -> Fault:
    return next(one for one in FAULTS if one.name == name)


def all_interrupts_come(qemu: str, context: BuildContext) -> bool:
    """What the guest for the race at VMRUN prints; ten seconds if none is lost."""
    guest = faults.build(context) / faults.LOST_INTERRUPT
    spec = MachineSpec(xen=guest, qemu=qemu, cpu=faults.CPU, memory_mib=64)
    with RunDir.create() as rundir, Machine.start(spec, rundir) as machine:
        return machine.xen.expect(["right", "wrong"], BOOT, "the guest's answer") == 0


@pytest.fixture(scope="session")
def stock(context: BuildContext) -> tuple[Fault, ...]:
    """The faults of this machine's own QEMU."""
    return faults.find(emulator.program("system", context), context)


@pytest.fixture
def exposed(
    request: pytest.FixtureRequest,
    prepared: Callable[[Wish], Artifacts],
    stock: tuple[Fault, ...],
) -> Iterator[Host]:
    """Xen, booting on stock QEMU with a CPU on which one fault can show: the test's parameter."""
    one = fault(request.param)
    if one not in stock:
        pytest.skip(f"this machine's QEMU gets this right: {one.name}")
    # What hides another fault, and this one as well, hides neither here.
    cpu = faults.cpu_model(each for each in FAULTS if not set(each.without) & set(one.without))
    artifacts = prepared(Wish(qemu="system", accel="tcg", cpu=cpu, domu=PVH))
    # Nor does what spoils dom0 (task-switched) when a domU is to show the same feature.
    spec = replace(artifacts.spec, dom0_cmdline=f"{artifacts.spec.dom0_cmdline} noxsave")
    with RunDir.create() as rundir, Machine.start(spec, rundir) as machine:
        host = Host(machine, artifacts.xen)
        try:
            yield host
        finally:
            host.close()


# On stock QEMU.


@pytest.mark.parametrize("exposed", ["smap"], indirect=True)
def test_stock_dom0_dies_at_a_far_return(exposed: Host) -> None:
    """Mended by patch 1."""
    with pytest.raises(GuestTrouble) as trouble:
        exposed.wait_ready(BOOT)
    finding = trouble.value.finding
    assert finding.name == "unhandled trap in a guest"
    assert "d0v0 Unhandled: vec 14, #PF[0001]" in finding.line


@pytest.mark.qemu
@pytest.mark.parametrize("exposed", ["rdtscp"], indirect=True)
def test_stock_pvh_domu_dies_at_rdtscp(exposed: Host) -> None:
    """Fixed by patch 2. Xen reports it time and again, and the domU gets no further."""
    exposed.wait_ready(BOOT)
    machine = exposed.machine
    with ThreadPoolExecutor(1) as other:
        created = other.submit(exposed.create, PVH)
        machine.xen.expect(r"emulation failed[^\n]*-> 0f 01 f9", BOOT, "Xen to meet RDTSCP")
        machine.kill()
        assert created.exception() is not None


@pytest.mark.qemu
@pytest.mark.parametrize("exposed", ["xsetbv"], indirect=True)
def test_stock_pvh_domu_warns_of_its_xsave_state(exposed: Host) -> None:
    """Mended by patch 3."""
    exposed.wait_ready(BOOT)
    with pytest.raises(GuestTrouble) as trouble:
        exposed.create(PVH)
    assert trouble.value.finding.name == "kernel WARNING"
    assert "XSAVE consistency problem" in "\n".join(trouble.value.lines)


@pytest.mark.qemu
def test_stock_loses_an_interrupt_at_vmrun(context: BuildContext) -> None:
    """Mended by patch 16. What the rig does about it: test_lost_interrupt.py."""
    qemu = emulator.program("system", context)
    version = re.search(r"version (\d+)\.(\d+)", qemu_version(qemu))
    assert version
    if tuple(map(int, version.groups())) >= (10, 2):
        pytest.skip("this machine's QEMU gets this right")
    assert all_interrupts_come(qemu, context) is False


# On ours.


@pytest.mark.parametrize("name", OURS)
def test_patched_qemu_has_none_of_the_faults(name: str, context: BuildContext) -> None:
    """Needs all patches that are for its version."""
    qemu = emulator.program(name, context)
    assert faults.find(qemu, context) == ()
    assert all_interrupts_come(qemu, context)


@pytest.mark.qemu
@pytest.mark.timeout(3600)
@pytest.mark.stack(qemu="patched", accel="tcg", domu="pvh")
def test_stack_runs_on_the_plain_cpu(host: RigHost, lun: RigLun) -> None:
    """A PV dom0 under SMAP and SMEP (patch 1), a PVH domU with RDTSCP (2) and XSAVE (3)."""
    assert host.stack.artifacts.spec.cpu_model == "max"
    leaf_7 = int(host.xen.info()["hw_caps"].split(":")[5], 16)
    assert leaf_7 & SMEP
    assert leaf_7 & SMAP
    domu = host.create(disk=lun, ring_pages=16)
    flags = domu.domain.channel.run("grep -m1 ^flags /proc/cpuinfo", timeout=20).text.split()
    assert {"rdtscp", "xsave", "smap", "smep"} <= set(flags)
    assert domu.ring(lun).pages == 16
    with domu.verifying_io(outstanding=64) as io:
        io.await_answers(20)


@pytest.mark.qemu
@pytest.mark.timeout(3600)
def test_checkpoint_of_a_busy_pvh_domu_resumes(
    prepared: Callable[[Wish], Artifacts], tmp_path: Path
) -> None:
    """Needs patch 4: the domU's CPU is in guest mode when the machine stops."""
    artifacts = prepared(Wish(qemu="patched", accel="tcg", domu=PVH))
    saved = tmp_path / "saved"
    with RunDir.create() as rundir, Machine.start(artifacts.spec, rundir, savable=True) as machine:
        host = Host(machine, artifacts.xen)
        host.wait_ready(BOOT)
        domain = host.create(PVH)
        domain.channel.run("while :; do :; done > /dev/null 2>&1 & echo started", timeout=20)
        domid, tty = domain.domid, domain.tty
        host.close()
        checkpoint.save(machine, saved)
    with RunDir.create() as rundir, checkpoint.load(artifacts.spec, saved, rundir) as machine:
        host = Host(machine, artifacts.xen)
        try:
            host.wait_agent(60)
            domain = host.adopt(PVH.name, domid, tty)
            assert domain.open_channel(60).run("echo alive", timeout=60).text == "alive\n"
        finally:
            host.close()


@pytest.mark.parametrize(
    "qemu",
    [
        "system",
        pytest.param("patched", marks=[pytest.mark.qemu, pytest.mark.timeout(3600)]),
    ],
)
def test_run_reports_its_cpu_model(qemu: str, stock: tuple[Fault, ...]) -> None:
    options = ("--qemu", qemu, "--accel", "tcg", "--data", "4", "--json")
    done = run_emu("run", *options, timeout=3600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["cpu"] == ("max" if qemu == "patched" else faults.cpu_model(stock))
    assert ("patched by emu-xen-block" in report["qemu"]) == (qemu == "patched")


# The patches themselves.


@pytest.mark.parametrize("name", OURS)
def test_series_is_ready_to_be_sent(
    name: str, context: BuildContext, cache: Cache, tmp_path: Path
) -> None:
    """It is mail that applies to the packaged source, checkpatch has nothing to say of it."""
    wanted = PATCHED[name]
    with kbuild.workplace(cache, "qemu-series") as tree:
        qemubuild.unpack(wanted, tree, context)
        repository = git_am.Repository(tree, tmp_path)
        for patch in wanted.series:
            text = patch.read_text()
            body = email.message_from_string(text.partition("\n")[2], policy=email.policy.default)
            subject = body["Subject"].partition("] ")[2].partition(": ")[0]
            assert subject in ("target/i386", "chardev", "icount", "replay")
            if subject == "target/i386":
                assert re.search(r"(AMD APM|Intel SDM)\s+volume \d,\s+section", text)
            assert "Signed-off-by" not in text, "the sender's to add"
            repository.am(patch)
            repository.commit(patch.name)
            checked = subprocess.run(
                ["perl", "scripts/checkpatch.pl", "--no-tree", "--no-signoff", str(patch)],
                cwd=tree,
                capture_output=True,
                text=True,
                check=False,
            )
            assert "total: 0 errors, 0 warnings" in checked.stdout, checked.stdout
