"""Builds the module that does one wrong thing (trouble/trouble.c) for a kernel of ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.kernels import Kernel
from emu.progress import Progress

_SOURCE = Path(__file__).parent / "trouble/trouble.c"


def build(kernel: Kernel, cache: Cache, into: Path) -> Path:
    """The module, without debug information, in the directory `into`."""
    toolchain = kbuild.find_toolchain(kernel.config.read_text())
    with kbuild.workplace(cache, "trouble") as scratch:
        devel, source = scratch / "devel", scratch / "source"
        devel.mkdir()
        source.mkdir()
        subprocess.run(["tar", "-x", "-f", kernel.devel, "-C", devel], check=True)
        shutil.copy(_SOURCE, source)
        (source / "Kbuild").write_text("obj-m := trouble.o\n")
        kbuild.make(
            devel / "build", f"M={source.resolve()}", "modules",
            toolchain=toolchain, progress=Progress(), what="trouble.ko", hide=scratch,
        )  # fmt: skip
        subprocess.run(["strip", "--strip-debug", source / "trouble.ko"], check=True)
        return Path(shutil.copy(source / "trouble.ko", into))
