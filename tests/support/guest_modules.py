"""The kernel modules of tests (trouble/*.c), built for a guest's kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.images import guest_module
from emu.images.context import BuildContext
from emu.images.kernels import Kernel

_SOURCES = Path(__file__).parent / "trouble"


def build(name: str, kernel: Kernel, context: BuildContext) -> Path:
    """The module trouble/`name`.c, from the cache or built."""
    source = _SOURCES / f"{name}.c"
    return guest_module.build(source, kernel, context, f"{name}.ko for {kernel.release}")


def build_with_kprobes(name: str, kernel: Kernel, context: BuildContext) -> Path:
    """The same for a module that needs kprobes; skips the test where the kernel has none."""
    if "CONFIG_KPROBES=y" not in kernel.config.read_text().splitlines():
        pytest.skip(f"{kernel.name} has no kprobes")
    return build(name, kernel, context)
