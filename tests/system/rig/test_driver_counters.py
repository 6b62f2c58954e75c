"""Drivers with counters, for `--emu-coverage`: what they count is complete, and counted once."""

from __future__ import annotations

from pathlib import Path

from emu.channel.channel import Channel
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import PatchedDrivers
from emu.rig import RigHost
from emu.stack.stack import Stack
from emu.suite import records
from emu.xen import driver_counters
from emu.xen.driver_counters import Counted

FRONT, BACK = "xen-blkfront.c", "xen-blkback/xenbus.c"


def calls(counted: list[Counted], cache: Cache, folder: Path) -> dict[str, int]:
    """How often each function was entered, by the count of its first line."""
    found = {}
    for part in records.reached(counted, cache, folder):
        outline = records.read_outline(folder / "builds" / f"{part.build}.json")
        for name, counts in part.files.items():
            for function, (first, _) in outline.files[name].functions.items():
                found[f"{name}:{function}"] = counts.lines.get(first, 0)
    return found


def test_counters_of_several_loads_and_of_a_restored_domu(
    stack: Stack, cache: Cache, tmp_path: Path
) -> None:
    host = RigHost(stack, BuildContext(cache, patched=PatchedDrivers(counted=True)))
    left: list[Channel] = []
    stack.host.leaving = left.append
    domu = host.create(disk=host.lun)
    domu.detach()
    domu.load_front()
    domu.attach(host.lun)
    domu.save_and_restore()
    domu.run("dd if=/dev/zero of=/dev/xvda bs=1M count=1 oflag=direct")
    assert left, "nobody was told that the domU would be saved"
    counted = [
        found
        for channel in (host.dom0, domu.channel, domu.channel)
        if (found := driver_counters.read(channel)) is not None
    ]
    entered = calls(counted, cache, tmp_path)
    expected = {
        f"{FRONT}:xlblk_init": 2,
        f"{FRONT}:xlblk_exit": 1,
        f"{FRONT}:blkfront_probe": 2,
        f"{FRONT}:blkfront_resume": 1,
        f"{BACK}:xen_blkbk_probe": 3,
        f"{BACK}:xen_blkbk_remove": 2,
    }
    wrong = [
        f"{name} ran {times} times, counted: {entered[name]}"
        for name, times in expected.items()
        if entered[name] != times
    ]
    assert not wrong, "; ".join(wrong)
