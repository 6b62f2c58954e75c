"""Small kernel modules of ours, one C file each, built for a guest's kernel, kept in the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from emu.images import kbuild, modules
from emu.images.context import BuildContext
from emu.images.kernels import Kernel
from emu.images.manifest import JSON
from emu.runprogram import run


def build(source: Path, kernel: Kernel, context: BuildContext, what: str) -> Path:
    """The module of a C file for a kernel, without debug information; `what` is for progress.

    Raises InputError with the compiler's errors.
    """
    config = kernel.config.read_text()
    toolchain = kbuild.find_toolchain(config)
    name = f"{source.stem}.ko"
    inputs: dict[str, JSON] = {
        "kernel": kernel.root.name,
        "source": list(kbuild.digest([source])),
        "toolchain": toolchain.version,
    }

    def fill(made: Path) -> None:
        with (
            context.progress.stage(f"building {what}"),
            kbuild.workplace(context.cache, source.stem) as place,
        ):
            folder = place / "source"
            folder.mkdir()
            shutil.copy(source, folder)
            (folder / "Kbuild").write_text(f"obj-m := {source.stem}.o\n")
            modules.unpack_devel(kernel, place, context.progress)
            kbuild.make(
                place / "devel/build", f"M={os.path.realpath(folder)}", "modules",
                "CONFIG_DEBUG_INFO_BTF_MODULES=", *kbuild.without_newer_flags(toolchain, config),
                toolchain=toolchain, progress=context.progress, what=what, hide=place,
            )  # fmt: skip
            command = ["strip", "--strip-debug", "-o", str(made / name), str(folder / name)]
            run(command, f"strip refuses {name}")

    return context.entry("guest-module", inputs, fill) / name
