"""A watchdog for lost interrupts: all of QEMU sleeps though its guests have timers.

QEMU before 10.2 can lose an interrupt (KNOWN.md, "A lost interrupt"). After a lost timer
interrupt none follows: the virtual CPU is halted, no timer is armed, and Xen and its guests wait
for an interrupt that is pending already, until any other one makes the CPU look at its local APIC.
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
_INTERVAL = 0.25


class Watchdog:
    """Watches a machine from now on; `interrupt` is what sends its guest an interrupt.

    `interrupt` is called on a thread of its own. An EmuError that it raises is ignored: whoever
    waits for the guest gets one as well.
    """

    def __init__(self, machine: Machine, interrupt: Callable[[], object]) -> None:
        self.fired = 0
        """How often it has sent an interrupt."""
        self._machine = machine
        self._interrupt = interrupt
        self._task = reactor().submit(self._watch())

    def close(self) -> None:
        """Stop watching; twice is fine."""
        self._task.cancel()

    async def _watch(self) -> None:
        before: dict[str, int] = {}
        samples = 0
        while self._machine.running:
            now = sleepers(self._machine.pid)
            samples = samples + 1 if now and now == before else 0
            before = now
            if samples * _INTERVAL >= ASLEEP_AFTER:
                await asyncio.get_running_loop().run_in_executor(None, self._fire)
                samples = 0
            await asyncio.sleep(_INTERVAL)

    def _fire(self) -> None:
        with contextlib.suppress(EmuError):
            if not self._machine.qmp("query-status", timeout=5)["running"]:
                return  # paused, by us or by a debugger
            self.fired += 1
            self._interrupt()
            # Only if that worked: a Xen that has crashed sleeps as well, with nothing lost.
            self._machine.remark(
                f"QEMU slept for {ASLEEP_AFTER:.0f} s: an interrupt was lost, its guests are woken"
            )


def sleepers(pid: int) -> dict[str, int]:
    """Context switches so far of each thread of a process, if all of them sleep now.

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
