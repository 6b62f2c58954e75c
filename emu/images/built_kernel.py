"""A kernel built here: of a source package with patches of ours, or of a tree on this machine.

Either is a directory of ours with the source, in which make runs (`KernelSource`), and a
configuration. Nothing of where it lies gets into the kernel.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from emu.errors import RigError
from emu.images import kbuild, packed
from emu.images.configuration import NOTES, Configuration
from emu.images.context import BuildContext
from emu.images.depends import builtin, find_modules, keep_modules, plain
from emu.images.fetch import fetch
from emu.images.kernel_files import pack, seal
from emu.images.kernel_specs import Spec, document
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
_MANY = 400
"""Modules beyond which a build takes so long that it is said."""


class KernelSource(abc.ABC):
    """The source of a kernel that is built here."""

    kind: str
    """The kind of cache entry that the kernel is."""
    localversion: str = ""
    """What the kernel has behind its version and its configuration's suffix in `uname -r`."""
    left_out: frozenset[str] = frozenset()
    """Modules, by plain name, that the kernel is not kept with."""
    room: int = 0
    """Bytes that a build takes, where whoever makes the directory does not see to it."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """What it is, for people."""

    @abc.abstractmethod
    def inputs(self) -> dict[str, JSON]:
        """What stands for the source in cache keys."""

    @abc.abstractmethod
    def place(
        self, configured: Configuration, toolchain: kbuild.Toolchain, context: BuildContext
    ) -> AbstractContextManager[Path]:
        """A directory with the source for make, for what is configured and compiled like that."""


@dataclass(frozen=True)
class PackagedSource(KernelSource):
    """The source of a lab kernel: of its package, with patches of ours."""

    spec: Spec
    context: BuildContext
    kind = "kernel-lab"
    room = _ROOM

    def __str__(self) -> str:
        return self.spec.name

    def inputs(self) -> dict[str, JSON]:
        return {
            "source": lock_digest(self.context.lock, [self.spec.packages["source"]]),
            "patches": kbuild.digest(self._patches()),
        }

    @contextlib.contextmanager
    def place(
        self, configured: Configuration, toolchain: kbuild.Toolchain, context: BuildContext
    ) -> Iterator[Path]:
        deb = source_deb(self.spec, context)
        with kbuild.workplace(context.cache, "kernel") as scratch:
            tree = scratch / "linux"
            context.progress.tick(f"unpacking {deb.name}")
            unpack_source(deb, tree)
            for patch in self._patches():
                context.progress.tick(f"applying {patch.name}")
                apply_patch(patch, tree)
            yield tree

    def _patches(self) -> list[Path]:
        return [patch for folder in self.spec.patches for patch in kbuild.series(folder)]


def lab_kernel(wanted: Spec, context: BuildContext) -> Path:
    """A lab kernel, from the cache or built now (minutes)."""
    return built_kernel(PackagedSource(wanted, context), Configuration(wanted.config), context)


def built_kernel(source: KernelSource, configuration: Configuration, context: BuildContext) -> Path:
    """The files of a kernel built of this source, from the cache or built now.

    Raises InputError for a tool that is missing, an option that the rig needs and that did not
    take, or a source that does not compile.
    """
    toolchain = kbuild.find_toolchain()
    inputs: dict[str, JSON] = {
        **source.inputs(),
        **configuration.inputs(),
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
    }

    def build(made: Path) -> None:
        kbuild.need_kernel_tools(toolchain)
        with (
            context.progress.stage(f"building {source}"),
            source.place(configuration, toolchain, context) as tree,
        ):
            named = [f"LOCALVERSION={source.localversion}"] if source.localversion else []
            make = functools.partial(
                kbuild.make, tree, *named, toolchain=toolchain, progress=context.progress,
                what=str(source), ccache=context.cache.store("ccache"),
            )  # fmt: skip
            notes = configuration.apply(tree, make, str(source), context.progress)
            count = (tree / ".config").read_text().count("=m\n")
            if count > _MANY:
                context.progress.note(
                    f"{source}: {count} options are modules, which takes hours; "
                    "`make localmodconfig` leaves those that a machine uses"
                )
            # How many steps it takes is known where all of the lab's configuration is built.
            known = not configuration.whole and not (tree / "vmlinux").exists()
            make("vmlinux", "modules", steps=_STEPS if known else None)
            root = tree / ".emu-root"
            shutil.rmtree(root, ignore_errors=True)
            make("modules_install", f"INSTALL_MOD_PATH={root}", "DEPMOD=true")
            _collect(tree, root / "lib/modules", source.left_out, made, context.progress)
            shutil.rmtree(root)
            (made / NOTES).write_text(json.dumps(notes, indent=1, sort_keys=True))

    return context.entry(source.kind, inputs, build, room=source.room)


def source_deb(wanted: Spec, context: BuildContext) -> Path:
    """The linux-source package of a kernel."""
    debs = fetch([wanted.packages["source"]], context)
    return next(deb for package, deb in debs.items() if package.name.startswith("linux-source-"))


def unpack_source(deb: Path, tree: Path) -> None:
    """Unpack the whole kernel source of a linux-source package; its top becomes `tree`."""
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


def _collect(
    tree: Path, installed: Path, left_out: frozenset[str], made: Path, progress: Progress
) -> None:
    release = (tree / "include/config/kernel.release").read_text().strip()
    shutil.copy(tree / "vmlinux", made / "vmlinux.debug")
    strip = ["strip", "-s", "-o", str(made / "vmlinux"), str(tree / "vmlinux")]
    run(strip, "strip refuses vmlinux", progress=progress)
    shutil.copy(tree / ".config", made / "config")
    shutil.copy(tree / "Module.symvers", made / "Module.symvers")
    modules = installed / release
    keep_modules(modules, _wanted(modules, left_out), made / "lib/modules" / release)
    (tree / "build").unlink(missing_ok=True)
    (tree / "build").symlink_to(".")
    names = ["build", ".config", "Makefile", "Module.symvers", "arch/x86", "include", "scripts"]
    names += ["tools/objtool/objtool"]
    objects = ("--exclude=*.o", "--exclude=*.a", "--exclude=.*.cmd")
    pack(tree, names, made / "devel.tar", progress, *objects)
    seal(made, release)


def _wanted(modules: Path, left_out: frozenset[str]) -> list[str]:
    """The modules that are kept: all of a small kernel's, of a large one what a package's are."""
    there = find_modules(modules)
    if len(there) <= _MANY:
        return sorted(there.keys() - left_out)
    asked = document()["keep"]
    known = (there.keys() | builtin(modules)) - left_out
    return [name for name in (*asked["modules"], *asked["where-present"]) if plain(name) in known]
