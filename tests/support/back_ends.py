"""Back ends that a test makes: the series with one patch more, from back-ends/*.patch."""

from __future__ import annotations

from pathlib import Path

from emu.images import modules
from emu.images.driver_patches import driver_patch
from emu.rig import RigHost

PATCHES = Path(__file__).parent / "back-ends"


def back_end(host: RigHost, name: str) -> str:
    """The module of the back end of back-ends/`name`.patch, built for the host's dom0."""
    kernel = host.stack.artifacts.kernel
    extra = driver_patch(PATCHES / f"{name}.patch")
    patches = [*modules.patches_of(kernel, host.context), extra]
    made = modules.build_drivers(kernel, patches, host.context)
    return str(made / "xen-blkback.ko")
