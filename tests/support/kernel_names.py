"""Kernels of kernels.lock by what they are like: which there are changes with the archive."""

from __future__ import annotations

import pytest

from emu.images.catalogue import DEBIAN, PackagedLinux, catalogue
from emu.images.kernel_specs import full_name, series_lines, specs


def newest(
    flavour: str = DEBIAN, *, headers: bool, series: bool = True, line: str = ""
) -> str | None:
    """The name of the newest kernel that kernels.toml has not, with or without headers, of a
    line with or without the driver series (or of this line); None if the archive has none.
    """
    lines = series_lines()

    def is_one(kernel: PackagedLinux) -> bool:
        right = kernel.line == line if line else (kernel.line in lines) == series
        like = kernel.flavour == flavour and kernel.buildable == headers and kernel.complete
        return right and like and full_name(kernel.release) not in specs()

    found = [full_name(kernel.release) for kernel in catalogue().kernels if is_one(kernel)]
    return found[-1] if found else None


def a_kernel(flavour: str = DEBIAN, *, headers: bool, series: bool = True) -> str:
    """The same inside a test, which is skipped where the archive has no such kernel."""
    return newest(flavour, headers=headers, series=series) or pytest.skip("there is none now")
