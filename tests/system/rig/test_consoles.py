"""The consoles: driven with pexpect, logged one by one and merged, watched without a wait."""

from __future__ import annotations

import re
import time

import pytest

from emu.deadline import Deadline
from emu.machine.watch import GuestTrouble
from emu.stack.stack import Stack


def test_console_of_each_guest_has_a_shell(stack: Stack) -> None:
    for name, console in (("dom0", stack.machine.dom0), ("domu", stack.domain.console)):
        console.sendline("")
        console.expect(r"# ", timeout=20, what="the shell's prompt")
        console.sendline("echo 6 times 7 is $((6*7)) on $(hostname)", char_delay=0.01)
        console.expect(rf"6 times 7 is 42 on {name}\n", timeout=20, what="its answer")


def test_logs_are_separate_and_merged(stack: Stack) -> None:
    stack.domain.channel.run("echo printed in u1 > /dev/kmsg", timeout=20)
    stack.host.dom0.run("echo printed in dom0 > /dev/kmsg; xl debug-keys h", timeout=20)
    stack.domain.console.expect("printed in u1", timeout=20)
    stack.machine.dom0.expect("printed in dom0", timeout=20)
    stack.machine.xen.expect("'h' pressed", timeout=20)
    time.sleep(0.5)
    logs = {
        name: stack.machine.rundir.log(name).read_text()
        for name in ("xen", "dom0", "u1", "console")
    }
    stamp = r"^\[ *\d+\.\d{3}\] "
    assert re.search(stamp + r".*printed in u1", logs["u1"], re.M)
    assert re.search(stamp + r".*printed in dom0", logs["dom0"], re.M)
    assert re.search(stamp + r".*'h' pressed", logs["xen"], re.M)
    assert "printed in dom0" not in logs["u1"]
    assert "printed in u1" not in logs["dom0"]
    for who, what in (("u1", "printed in u1"), ("dom0", "printed in dom0"), ("xen", "'h' pressed")):
        assert re.search(stamp + rf"{who} \| .*{what}", logs["console"], re.M)


@pytest.mark.trouble("kernel panic")
def test_trouble_ends_a_wait_with_its_name(stack: Stack) -> None:
    stack.domain.channel.spawn("sleep 1; echo c > /proc/sysrq-trigger")
    until = Deadline("the wait to end", 30)
    with pytest.raises(GuestTrouble) as caught:
        stack.domain.console.expect("never printed", timeout=60, what="what never comes")
    assert not until.passed, f"trouble ended the wait late: {until}"
    assert "u1: kernel panic while waiting for what never comes (" in caught.value.message
    assert any("Kernel panic - not syncing" in line for line in caught.value.lines)


@pytest.mark.trouble("kernel WARNING")
def test_trouble_is_found_without_a_wait(stack: Stack) -> None:
    line = "WARNING: CPU: 0 PID: 1 at made/up.c:1 f+0x1/0x2"
    stack.host.dom0.spawn(f"echo '{line}' > /dev/kmsg")
    time.sleep(2)
    (finding,) = stack.machine.watch.findings
    assert (finding.guest, finding.name) == ("dom0", "kernel WARNING")
    with pytest.raises(GuestTrouble, match="dom0: kernel WARNING"):
        stack.host.dom0.run(["true"], timeout=20)
