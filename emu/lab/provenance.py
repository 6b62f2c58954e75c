"""What a result was obtained with: versions and hashes of what ran, by name."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from emu.images import replaced
from emu.images.modules import STOCK, Driver, End
from emu.stack.stack import Stack

REPLACED = "replaced-packages"
"""The name of what was used in place of locked packages, where anything was."""


def of(stack: Stack, loaded: Mapping[End, Driver]) -> dict[str, str]:
    """Versions and hashes of Xen, kernels, guest images, QEMU, accelerator and drivers.

    `loaded` are the drivers that ran, by end. Values are hashes (SHA-256, build ids in hex,
    keys of the cache) or versions.
    """
    artifacts = stack.artifacts
    others = replaced.described(artifacts.packages)
    return {
        "qemu": _qemu(stack),
        "accelerator": artifacts.accel.name,
        "clock": artifacts.wish.guest_clock,
        "xen": artifacts.xen.release,
        "xen-sha256": _sha256(artifacts.guests.xen),
        "dom0-kernel": f"{artifacts.kernel.release} {_sha256(artifacts.kernel.vmlinux)}",
        "domu-kernel": f"{artifacts.domu_kernel.release} {_sha256(artifacts.domu_kernel.vmlinux)}",
        **{
            f"{guest}-tree": f"{kernel.tree} sha256 {kernel.tree.digest}"
            for guest, kernel in (("dom0", artifacts.kernel), ("domu", artifacts.domu_kernel))
            if kernel.tree is not None
        },
        "guest-images": artifacts.guests.root.name,
        **({REPLACED: "; ".join(others)} if others else {}),
        **{f"{driver.end}-driver": _driver(driver) for driver in loaded.values()},
        "run": str(stack.machine.rundir.path),
    }


def _driver(driver: Driver) -> str:
    said = f"{driver.which} build id {driver.build_id}"
    if driver.recipe is None:
        return said if driver.which in (STOCK, str(driver.path)) else f"{said}: {driver.path}"
    patches = "".join(f"; {patch}, SHA-256 {patch.sha256}" for patch in driver.recipe.more)
    return f"{said}: {driver.made_of}{patches}"


def _qemu(stack: Stack) -> str:
    answer = stack.machine.qmp("query-version")
    numbers = answer["qemu"]
    version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
    return f"{version} {answer['package']}".strip()


@functools.lru_cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
