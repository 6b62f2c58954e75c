"""A kernel built here, from the source package with patches and a configuration of ours."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from emu.errors import RigError
from emu.images import kbuild, packed
from emu.images.context import BuildContext
from emu.images.depends import find_modules, keep_modules
from emu.images.fetch import fetch
from emu.images.kconfig import check_fragment, check_requirements
from emu.images.kernel_files import pack, seal
from emu.images.kernel_specs import Spec, requirements
from emu.images.manifest import JSON
from emu.images.packages import lock_digest
from emu.images.patching import apply_patch
from emu.progress import Progress
from emu.runprogram import SILENCE, bounded, find_program, run

_RECIPE = 1
"""Raised when the way a kernel is built changes the outcome; a part of cache keys."""
_STEPS = 1940
"""Lines of progress that make prints while it builds the lab kernel (6.1.192)."""
_ROOM = 5 << 30
"""Bytes that building the lab kernel takes on the way (measured: 1.5 GB source, 2.3 GB with
objects)."""


def built_kernel(wanted: Spec, context: BuildContext) -> Path:
    patches = [patch for folder in wanted.patches for patch in kbuild.series(folder)]
    toolchain = kbuild.find_toolchain()
    inputs: dict[str, JSON] = {
        "source": lock_digest(context.lock, [wanted.packages["source"]]),
        "config": kbuild.digest(wanted.config),
        "patches": kbuild.digest(patches),
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
    }

    def build(made: Path) -> None:
        kbuild.need_kernel_tools(toolchain)
        deb = source_deb(wanted, context)
        with (
            context.progress.stage(f"building {wanted.name} from {deb.name}"),
            kbuild.workplace(context.cache, "kernel") as scratch,
        ):
            tree = scratch / "linux"
            context.progress.tick("unpacking the source")
            _unpack_source(deb, tree)
            for patch in patches:
                context.progress.tick(f"applying {patch.name}")
                apply_patch(patch, tree)
            fragment = "".join(path.read_text() for path in wanted.config)
            (scratch / "fragment").write_text(fragment)
            make = functools.partial(
                kbuild.make, tree, toolchain=toolchain, progress=context.progress, what=wanted.name
            )
            make("allnoconfig", f"KCONFIG_ALLCONFIG={scratch / 'fragment'}")
            check_fragment(fragment, (tree / ".config").read_text())
            check_requirements(tree / ".config", requirements())
            make("vmlinux", "modules", steps=_STEPS)
            # Into a path without spaces first: modules_install is kbuild's too.
            make("modules_install", f"INSTALL_MOD_PATH={scratch / 'root'}", "DEPMOD=true")
            _collect(tree, scratch / "root/lib/modules", made, context.progress)

    return context.entry("kernel-lab", inputs, build, room=_ROOM)


def source_deb(wanted: Spec, context: BuildContext) -> Path:
    """The linux-source package of a kernel."""
    debs = fetch([wanted.packages["source"]], context)
    return next(deb for package, deb in debs.items() if package.name.startswith("linux-source-"))


def _unpack_source(deb: Path, tree: Path) -> None:
    """Unpack the whole kernel source so that its top becomes `tree`."""
    tree.mkdir()
    program = find_program("tar")
    command = [program, "-x", "--strip-components=1", "-C", str(tree)]
    with (
        packed.source_tar(deb) as source,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as tar,
        bounded(tar, f"unpacking {deb.name}", SILENCE),
    ):
        assert tar.stdin is not None
        with contextlib.suppress(BrokenPipeError), tar.stdin:
            shutil.copyfileobj(source, tar.stdin, 1 << 20)
        if tar.wait():
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()
            raise RigError(f"cannot unpack {deb.name}", lines=lines[-3:])


def _collect(tree: Path, installed: Path, made: Path, progress: Progress) -> None:
    release = (tree / "include/config/kernel.release").read_text().strip()
    shutil.copy(tree / "vmlinux", made / "vmlinux.debug")
    strip = ["strip", "-s", "-o", str(made / "vmlinux"), str(tree / "vmlinux")]
    run(strip, "strip refuses vmlinux", progress=progress)
    shutil.copy(tree / ".config", made / "config")
    shutil.copy(tree / "Module.symvers", made / "Module.symvers")
    modules = installed / release
    keep_modules(modules, sorted(find_modules(modules)), made / "lib/modules" / release)
    (tree / "build").symlink_to(".")
    names = ["build", ".config", "Makefile", "Module.symvers", "arch/x86", "include", "scripts"]
    names += ["tools/objtool/objtool"]
    left_out = ("--exclude=*.o", "--exclude=*.a", "--exclude=.*.cmd")
    pack(tree, names, made / "devel.tar", progress, *left_out)
    seal(made, release)
