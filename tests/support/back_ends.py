"""Ends that a test makes: the series with more patches, from back-ends/ or front-ends/*.patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emu.images import modules
from emu.images.driver_patches import driver_patch
from emu.images.kernels import Kernel
from emu.rig import RigHost

HERE = Path(__file__).parent


def back_end(host: RigHost, name: str) -> str:
    """The module of the back end of back-ends/`name`.patch, built for the host's dom0."""
    return _built(host, host.stack.artifacts.kernel, [HERE / "back-ends" / f"{name}.patch"], "back")


def front_end(host: RigHost, *names: str) -> str:
    """The module of the front end of all front-ends/`name`.patch, built for the host's domUs."""
    kernel = host.stack.artifacts.domu_kernel
    patches = [HERE / "front-ends" / f"{name}.patch" for name in names]
    return _built(host, kernel, patches, "front")


def _built(host: RigHost, kernel: Kernel, patches: Sequence[Path], end: modules.End) -> str:
    whole = [*modules.patches_of(kernel, host.context), *map(driver_patch, patches)]
    made = modules.build_drivers(kernel, whole, host.context)
    return str(made / f"{modules.MODULE[end]}.ko")
