"""The module that keeps the counters of drivers in a guest: see guest-images/coverage/."""

from __future__ import annotations

from pathlib import Path

from emu.images import counted, guest_module
from emu.images.context import BuildContext
from emu.images.kernels import Kernel

MODULE = "emu-gcov"


def build(kernel: Kernel, context: BuildContext) -> Path:
    """The module for a kernel, from the cache or built. Raises InputError with what gcc says."""
    source = counted.folder() / f"{MODULE}.c"
    return guest_module.build(source, kernel, context, f"the counters' module for {kernel.release}")
