"""Guests that break: refused, panicking, without their LUN's server. Each is named at once."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from emu.channel.channel import CommandFailed
from emu.deadline import Deadline
from emu.errors import NotHeld
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import from_environment
from emu.machine.qemu import Machine
from emu.machine.rundir import RunDir
from emu.machine.watch import GuestTrouble
from emu.stack.drivers import drivers_for, load_drivers
from emu.stack.stack import Artifacts, Stack
from emu.xen.config import DomuConfig
from emu.xen.host import Host

pytestmark = pytest.mark.timeout(150)

SERVER_TIMEOUT = 6
"""Seconds after which target_core_user gives up a command that user space does not answer."""
GIVEN_UP_WITHIN = SERVER_TIMEOUT + 45


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DomuConfig(name="u1", memory=64), "u1"),
        (DomuConfig(name="huge", memory=100_000), "memory"),
    ],
    ids=["a name that is taken", "more memory than there is"],
)
def test_domu_is_refused_by_xl(stack: Stack, config: DomuConfig, message: str) -> None:
    before = stack.host.list()
    with pytest.raises(NotHeld, match=f"xl refused to create domU {config.name}") as refused:
        stack.host.create(config)
    assert message in "\n".join(refused.value.lines)
    assert [info.domid for info in stack.host.list()] == [info.domid for info in before]
    assert stack.domain.channel.run(["echo", "here"], timeout=10).text == "here\n"


@pytest.mark.trouble("kernel panic")
def test_domu_panics_while_it_boots(stack: Stack) -> None:
    """Named by the watch, long before the two minutes for a boot are over."""
    config = DomuConfig(name="u2", memory=128, kernel_options="rdinit=/nonexistent")
    until = Deadline("the panic to be named", 40)
    with pytest.raises(GuestTrouble) as trouble:
        stack.host.create(config)
    assert not until.passed, f"a domU's panic was named late: {until}"
    finding = trouble.value.finding
    assert (finding.name, finding.guest, finding.console) == ("kernel panic", "u2", "u2")
    assert trouble.value.message.startswith("u2: kernel panic while waiting for the guest agent")
    assert any("Kernel panic - not syncing" in line for line in trouble.value.lines)


def test_dom0_panics_while_it_boots(artifacts: Artifacts) -> None:
    spec = replace(
        artifacts.spec, dom0_cmdline=f"{artifacts.spec.dom0_cmdline} rdinit=/nonexistent"
    )
    until = Deadline("the panic to be named", 60)
    with RunDir.create() as rundir, Machine.start(spec, rundir) as machine:
        host = Host(machine, artifacts.xen)
        try:
            with pytest.raises(GuestTrouble) as trouble:
                host.wait_ready(120)
        finally:
            host.close()
    assert not until.passed, f"dom0's panic was named late: {until}"
    assert trouble.value.message.startswith("dom0: kernel panic while waiting for the guest agent")
    assert any("Kernel panic - not syncing" in line for line in trouble.value.lines)


@pytest.mark.stack(clock="wall")  # the kernel's time-out is compared with this machine's clock
def test_tcmu_runner_is_killed_while_the_domu_writes(stack: Stack, cache: Cache) -> None:
    """Reads and writes fail, after the kernel's time-out for user space: none is reported as done.

    Without its server the LUN answers "not ready" to every command; the domU sees I/O
    errors, no end hangs, and the disk, the domU and the host can be taken down in order.
    """
    host, domu = stack.host, stack.domain.channel
    before = host.grants().of(stack.domain.domid).refs
    lun = stack.host.create_lun("mortal", server_timeout=SERVER_TIMEOUT)
    load_drivers(
        stack,
        drivers_for(stack.artifacts, BuildContext(cache, patched=from_environment())),
        cache,
        pages=1,
    )
    stack.domain.attach(lun)
    stack.domain.wait_connected()
    writer = domu.spawn(
        "dd if=/dev/zero of=/dev/xvda bs=64k count=4000 oflag=direct || echo failed"
    )
    time.sleep(1)
    assert writer.ended is None, "the domU had written it all before the server was killed"
    host.dom0.run("kill -9 $(pidof tcmu-runner)", timeout=10)
    waiting = Deadline("the kernel to give the requests up", SERVER_TIMEOUT)
    with pytest.raises(CommandFailed, match=r"u1: .* ended with status 1") as failed:
        domu.run("dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct", timeout=GIVEN_UP_WITHIN)
    assert "Input/output error" in str(failed.value)
    writer.wait(GIVEN_UP_WITHIN)
    assert waiting.spent > SERVER_TIMEOUT / 3, "they were answered, or failed, too soon"
    assert writer.read(stream=1) == b"failed\n"
    assert b"Input/output error" in writer.read(stream=2)
    assert "I/O error, dev sdb" in host.dom0.run("dmesg | tail -n 40", timeout=20).text
    assert "I/O error, dev xvda" in domu.run("dmesg | tail -n 20", timeout=20).text
    # Everything but the data is in order: connected, then apart with no grant left, then gone.
    assert stack.domain.ring().connected
    stack.domain.detach()
    assert host.grants().of(stack.domain.domid).refs == before
    stack.domain.destroy()
    assert [info.name for info in host.list()] == ["Domain-0"]
