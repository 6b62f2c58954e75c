"""The module that keeps the counters of drivers in a guest: see guest-images/coverage/."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from emu.images import counted, kbuild, modules
from emu.images.context import BuildContext
from emu.images.kernels import Kernel
from emu.images.manifest import JSON
from emu.runprogram import run

MODULE = "emu-gcov"


def build(kernel: Kernel, context: BuildContext) -> Path:
    """The module for a kernel, from the cache or built. Raises InputError with what gcc says."""
    source = counted.folder() / f"{MODULE}.c"
    toolchain = kbuild.find_toolchain(kernel.config.read_text())
    inputs: dict[str, JSON] = {
        "kernel": kernel.root.name,
        "source": list(kbuild.digest([source])),
        "toolchain": toolchain.version,
    }

    def fill(made: Path) -> None:
        what = f"the counters' module for {kernel.release}"
        with (
            context.progress.stage(f"building {what}"),
            kbuild.workplace(context.cache, "counters") as place,
        ):
            folder = place / "source"
            folder.mkdir()
            shutil.copy(source, folder)
            (folder / "Kbuild").write_text(f"obj-m := {MODULE}.o\n")
            modules.unpack_devel(kernel, place, context.progress)
            kbuild.make(
                place / "devel/build", f"M={os.path.realpath(folder)}", "modules",
                "CONFIG_DEBUG_INFO_BTF_MODULES=",
                *kbuild.without_newer_flags(toolchain, kernel.config.read_text()),
                toolchain=toolchain, progress=context.progress, what=what, hide=place,
            )  # fmt: skip
            command = ["strip", "--strip-debug", "-o", str(made / f"{MODULE}.ko")]
            run([*command, str(folder / f"{MODULE}.ko")], f"strip refuses {MODULE}.ko")

    return context.entry("driver-counters", inputs, fill) / f"{MODULE}.ko"
