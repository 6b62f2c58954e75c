"""The state dump of a stack when a test has failed: each view in a file of its run's directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emu.channel.channel import Channel
from emu.errors import EmuError
from emu.machine import diagnose
from emu.machine.rundir import RunDir
from emu.stack.stack import Stack
from emu.xen import grants

DEADLINE = 5.0
"""Seconds for each view, before scaling: a stack that hangs may answer none."""
_TASKS = "echo 8 > /proc/sys/kernel/printk; echo w > /proc/sysrq-trigger; sleep 0.2; dmesg"
_EVENTS = "xl dmesg -c > /dev/null; xl debug-keys e; sleep 0.2; xl dmesg"
_RINGS = "cd /sys/kernel/debug 2>/dev/null && grep -rs '' xen-blkback xen-blkfront; true"
_VIEWS = (
    ("domains", "dom0", "xl list -v"),
    ("xenstore", "dom0", "xenstore-ls -f"),
    ("grants", "dom0", grants.DUMP),
    # Of each port whether it is pending and masked, and what is behind it.
    ("events", "dom0", _EVENTS),
    ("queues-dom0", "dom0", _RINGS),
    ("queues-domu", "domu", _RINGS),
    # Blocked tasks are printed into the kernel's log, after what it had before.
    ("dmesg-dom0", "dom0", _TASKS),
    ("dmesg-domu", "domu", _TASKS),
)


@dataclass(frozen=True)
class Part:
    """One view: its name for a heading, and the file it lies in."""

    title: str
    path: Path

    def tail(self, lines: int) -> str:
        """Its last lines."""
        return "\n".join(self.path.read_text(errors="replace").splitlines()[-lines:])


def collect(stack: Stack, run: RunDir) -> list[Part]:
    """Look at QEMU and ask every guest for its views; one that does not answer, no further.

    Trouble that was found on a console before ends no wait here.
    Never raises for what the guests do.
    """
    # Before anything is asked of the guests: what comes in may wake a machine that sleeps.
    parts = [_kept(run, "qemu", diagnose.describe(stack.machine, DEADLINE))]
    silent: set[str] = set()
    with stack.machine.watch.after_the_fact():
        for name, guest, script in (*_VIEWS, *_views_of_others(stack)):
            if guest in silent:
                continue
            try:
                text = _ask(_channel(stack, guest), script)
            except EmuError as error:
                silent.add(guest)
                text = f"no answer from {guest}: {error}\n"
            parts.append(_kept(run, name, text))
    return parts


def _views_of_others(stack: Stack) -> list[tuple[str, str, str]]:
    """The domU's views for those that were created beside it, and answer."""
    first = stack.artifacts.wish.domu.name
    others = [name for name, domain in stack.host.domains.items() if domain.is_open]
    return [
        (view.replace("domu", name), name, script)
        for name in others
        if name != first
        for view, guest, script in _VIEWS
        if guest == "domu"
    ]


def _kept(run: RunDir, name: str, text: str) -> Part:
    path = run.log(f"state-{name}")
    path.write_text(text)
    return Part(f"{name} ({path})", path)


def _channel(stack: Stack, guest: str) -> Channel:
    if guest == "dom0":
        return stack.host.dom0
    return (stack.domain if guest == "domu" else stack.host.domain(guest)).channel


def _ask(channel: Channel, script: str) -> str:
    done = channel.run(script, timeout=DEADLINE, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")
