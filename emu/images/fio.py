"""fio for a guest: one static program, built from upstream's source as Debian has it.

Debian's own fio drags in a dozen libraries (37 MB). This one has the engines that need
none, io_uring among them, and leaves out what looks for other machines or other disks.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from emu.errors import InputError
from emu.images import kbuild
from emu.images.context import BuildContext
from emu.images.fetch import fetch
from emu.images.manifest import JSON
from emu.images.packages import lock_digest
from emu.images.replaced import settled
from emu.progress import Progress
from emu.runprogram import run

_SET = "source-fio"
_OPTIONS = (
    "--build-static",
    "--disable-native",  # the guest's CPU is not this machine's
    *("--disable-numa", "--disable-rdma", "--disable-rados", "--disable-rbd", "--disable-http"),
    *("--disable-gfapi", "--disable-libnfs", "--disable-lex", "--disable-pmem", "--disable-xnvme"),
    *("--disable-libzbc", "--disable-tcmalloc", "--disable-dfs", "--disable-shm"),
)
_RECIPE = 1
"""Raised when the way it is built changes the outcome; a part of the cache key."""
_STEPS = 110
"""Lines of progress that make prints."""


@settled
def build(context: BuildContext) -> Path:
    """The program, gzipped (0.9 MiB of 2.7): for a channel of 0.4 MiB/s into a domU.

    Built (a minute) unless the cache has it. Raises InputError without a compiler.
    """
    toolchain = kbuild.find_toolchain()
    inputs: dict[str, JSON] = {
        "source": lock_digest(context.lock, [_SET]),
        "options": list(_OPTIONS),
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
    }

    def fill(made: Path) -> None:
        (tarball,) = fetch([_SET], context).values()
        with (
            context.progress.stage("building fio"),
            kbuild.workplace(context.cache, "fio") as scratch,
        ):
            _run(
                ["tar", "-x", "--strip-components=1", "-f", str(tarball)], scratch, context.progress
            )
            _run(["./configure", f"--cc={toolchain.cc}", *_OPTIONS], scratch, context.progress)
            kbuild.make(
                scratch,
                "fio",
                toolchain=toolchain,
                progress=context.progress,
                what="fio",
                steps=_STEPS,
            )
            _run(["strip", "-s", "fio"], scratch, context.progress)
            packed = gzip.compress((scratch / "fio").read_bytes(), 9, mtime=0)
            (made / "fio.gz").write_bytes(packed)

    return context.entry("guest-fio", inputs, fill) / "fio.gz"


def _run(command: list[str], folder: Path, progress: Progress) -> None:
    run(command, "fio cannot be built", error=InputError, cwd=folder, progress=progress)
