"""The last steps of making a kernel, whichever way: its tar of headers, its checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emu.images import elf
from emu.images.kconfig import check_requirements
from emu.images.kernel_specs import requirements
from emu.progress import Progress
from emu.runprogram import run


def seal(made: Path, release: str, *, dom0: bool = True) -> None:
    """The last touches, and the last checks before a kernel may enter the cache: one for both
    guests, or for a domU alone.
    """
    (made / "release").write_text(f"{release}\n")
    (made / "version").write_text(f"{elf.banner(made / 'vmlinux')}\n")
    check_requirements(made / "config", requirements(dom0=dom0))
    elf.require_xen(made / "vmlinux", pv=True, pvh=True, dom0=dom0)
    elf.read_kernel(made / "vmlinux", release, made / "Module.symvers")


def pack(tree: Path, names: Sequence[str], into: Path, progress: Progress, *more: str) -> None:
    command = ["tar", "--create", "--file", str(into), "--sort=name", "--mtime=@0", "--owner=0"]
    command += ["--group=0", "--numeric-owner", "--mode=u+w,go=rX", *more, *names]
    run(command, f"cannot write {into}", lines=3, cwd=tree, progress=progress)
