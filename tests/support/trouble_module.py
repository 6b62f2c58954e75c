"""Builds modules of the tests (trouble/*.c) for a kernel of ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.kernels import Kernel
from emu.progress import Progress

_SOURCES = Path(__file__).parent / "trouble"


def build(kernel: Kernel, cache: Cache, into: Path, name: str = "trouble") -> Path:
    """The module trouble/`name`.c, without debug information, in the directory `into`."""
    toolchain = kbuild.find_toolchain(kernel.config.read_text())
    with kbuild.workplace(cache, name) as scratch:
        devel, source = scratch / "devel", scratch / "source"
        devel.mkdir()
        source.mkdir()
        subprocess.run(["tar", "-x", "-f", kernel.devel, "-C", devel], check=True)
        shutil.copy(_SOURCES / f"{name}.c", source)
        (source / "Kbuild").write_text(f"obj-m := {name}.o\n")
        kbuild.make(
            devel / "build", f"M={source.resolve()}", "modules",
            toolchain=toolchain, progress=Progress(), what=f"{name}.ko", hide=scratch,
        )  # fmt: skip
        subprocess.run(["strip", "--strip-debug", source / f"{name}.ko"], check=True)
        return Path(shutil.copy(source / f"{name}.ko", into))
