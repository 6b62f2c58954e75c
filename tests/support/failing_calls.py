"""Lets one call of a driver fail: trouble/failing.c in a guest.

calls = FailingCalls(lambda: host.dom0, "xen_blkback", module(host, "back", context))
calls.watch()
domu.attach(lun)
for call in calls.made():           # each place that called, and how often
    calls.fail(call, 1)             # the first call from there, from now on
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import guest_modules

from emu.channel.channel import Channel
from emu.errors import RigError
from emu.images.context import BuildContext
from emu.images.modules import End
from emu.rig import RigHost

_PROC = "/proc/failing"
_LOAD = f"[ -e {_PROC} ] || insmod $1"
KINDS = ("xenstore", "memory", "devices")
_RINGS = re.compile(r"ring|evtchn")
_MEMORY = re.compile(r"alloc_pages|kmalloc|kmem_cache|kvmalloc|kasprintf|mempool")
_LINE = re.compile(r"(\d+) (\S+) (\S+) (\S+)")


@dataclass(frozen=True)
class Call:
    """A function that a driver calls, from where ("connect+0x1f"), for which key in xenstore ("-":
    none), and how often it did."""

    function: str
    site: str
    key: str = "-"
    count: int = 1

    @property
    def caller(self) -> str:
        """The driver's function that calls."""
        return self.site.partition("+")[0].partition(".")[0]

    @property
    def kind(self) -> str:
        """What is called for: one of `KINDS`."""
        if self.function.startswith("xenbus_") and not _RINGS.search(self.function):
            return "xenstore"
        return "memory" if _MEMORY.search(self.function) else "devices"

    def __str__(self) -> str:
        key = "" if self.key == "-" else f" of {self.key}"
        return f"{self.function}{key} from {self.site}"


def module(host: RigHost, end: End, context: BuildContext) -> Path:
    """The module for the kernel that an end's driver runs on; skips the test if it can't work."""
    made = host.stack.artifacts
    kernel = made.kernel if end == "back" else made.domu_kernel
    return guest_modules.build_with_kprobes("failing", kernel, context)


class FailingCalls:
    """The calls of one module in one guest, whose channel changes when it is restored."""

    def __init__(self, channel: Callable[[], Channel], watched: str, module: Path) -> None:
        self._channel = channel
        self._watched = watched
        remote = f"/tmp/{module.name}"
        channel().put(module, remote)
        channel().run(["sh", "-c", _LOAD, "sh", remote], timeout=60)

    def watch(self) -> None:
        """Count calls from now on; none fails."""
        self._write(f"watch {self._watched}")

    def fail(self, call: Call, nth: int, errno: int = 0, *, times: int = 1) -> None:
        """Let the `nth` call from there fail, once or `times`; with -`errno`, or as is usual.

        The calls are counted anew.
        """
        self._write(f"fail {call.function} {call.site} {nth} {errno} {times}")

    def made(self) -> list[Call]:
        """The calls since they were counted anew, in the order of the first from each place."""
        lines = self._read()
        return [
            Call(found[2], found[3], found[4], int(found[1])) for line in lines[1:]
            if (found := _LINE.fullmatch(line))
        ]  # fmt: skip

    def has_failed(self) -> bool:
        """Whether the call that was to fail has."""
        return self._read()[0] == "failed 1"

    def _write(self, words: str) -> None:
        self._channel().run(f"echo {words} > {_PROC}", timeout=20)

    def _read(self) -> list[str]:
        lines = self._channel().run(["cat", _PROC], timeout=20).text.splitlines()
        if "more places call than there is room for" in lines:
            raise RigError("failing.c has no room for all the places that call")
        return lines
