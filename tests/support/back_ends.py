"""Ends that a test makes: the series with one patch more, from back-ends/ or front-ends/*.patch."""

from __future__ import annotations

from pathlib import Path

from emu.images import modules
from emu.images.driver_patches import driver_patch
from emu.images.kernels import Kernel
from emu.rig import RigHost

HERE = Path(__file__).parent


def back_end(host: RigHost, name: str) -> str:
    """The module of the back end of back-ends/`name`.patch, built for the host's dom0."""
    return _built(host, host.stack.artifacts.kernel, HERE / "back-ends" / f"{name}.patch", "back")


def front_end(host: RigHost, name: str) -> str:
    """The module of the front end of front-ends/`name`.patch, built for the host's domUs."""
    kernel = host.stack.artifacts.domu_kernel
    return _built(host, kernel, HERE / "front-ends" / f"{name}.patch", "front")


def _built(host: RigHost, kernel: Kernel, patch: Path, end: modules.End) -> str:
    patches = [*modules.patches_of(kernel, host.context), driver_patch(patch)]
    made = modules.build_drivers(kernel, patches, host.context)
    return str(made / f"{modules.MODULE[end]}.ko")
