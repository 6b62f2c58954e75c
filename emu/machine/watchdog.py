"""Wakes a machine that lost an interrupt: all of QEMU sleeps though its guests have timers.

QEMU before 10.2 can lose one (KNOWN.md, "A lost interrupt"). A lost timer's is the last for
good: the virtual CPU is halted, no timer runs, and Xen with all its guests waits for what has
come already, until any other interrupt lets the CPU look at its local APIC again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from emu.errors import EmuError
from emu.machine.qemu import Machine
from emu.reactor import reactor

ASLEEP_AFTER = 1.0
"""Seconds without a context switch in any thread. An idle stack had 0.41 at most (measured for a
minute each with a PV and a PVH domU; 0.07 on instruction time): Xen and dom0 have timers."""
_LOOK = 0.25


class Watchdog:
    """Feels a machine's watchdog from now on; `nudge` is what sends its guest an interrupt.

    `nudge` is called on a thread of its own, and what it raises for a guest (EmuError) is no
    matter of the watchdog: whoever waits for the guest hears of that.
    """

    def __init__(self, machine: Machine, nudge: Callable[[], object]) -> None:
        self.nudges = 0
        """How often the machine was woken."""
        self._machine = machine
        self._nudge = nudge
        self._feeling = reactor().submit(self._feel())

    def close(self) -> None:
        """Let go of the machine; twice is fine."""
        self._feeling.cancel()

    async def _feel(self) -> None:
        before: dict[str, int] = {}
        looks = 0
        while self._machine.running:
            now = sleepers(self._machine.pid)
            looks = looks + 1 if now and now == before else 0
            before = now
            if looks * _LOOK >= ASLEEP_AFTER:
                await asyncio.get_running_loop().run_in_executor(None, self._wake)
                looks = 0
            await asyncio.sleep(_LOOK)

    def _wake(self) -> None:
        with contextlib.suppress(EmuError):
            if not self._machine.qmp("query-status", timeout=5)["running"]:
                return  # it was told to stand still, or a debugger holds it
            self.nudges += 1
            self._nudge()
            # Only now: a Xen that has crashed sleeps, too, and no interrupt was lost there.
            self._machine.remark(
                f"QEMU slept for {ASLEEP_AFTER:.0f} s: an interrupt was lost, its guests are woken"
            )


def sleepers(pid: int) -> dict[str, int]:
    """How often each thread of a process has gone to sleep or was preempted, if all sleep now.

    Empty when one runs, waits for a disk, or is stopped, and for a process that has ended.
    """
    slept = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            status = (task / "status").read_text()
        except OSError:  # a thread that has ended meanwhile
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if not fields["State"].strip().startswith("S"):
            return {}
        slept[task.name] = sum(
            int(fields[f"{kind}_ctxt_switches"]) for kind in ("voluntary", "nonvoluntary")
        )
    return slept
