"""A kernel out of Debian's packages: image, modules, and headers where there are any."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from emu.errors import RigError
from emu.images import elf, ksymtab, packed
from emu.images.context import BuildContext
from emu.images.depends import find_modules, keep_modules, plain
from emu.images.fetch import fetch
from emu.images.kbuild_programs import LIBRARIES, make_runnable, recipe
from emu.images.kernel_files import pack, seal
from emu.images.kernel_specs import Spec, document
from emu.images.manifest import JSON
from emu.images.packages import lock_digest
from emu.progress import Progress

_RECIPE = 1
"""Raised when the way a kernel is unpacked changes the outcome; a part of cache keys."""


def packaged_kernel(wanted: Spec, context: BuildContext) -> Path:
    sets = kernel_sets(wanted)
    asked = document()["keep"]
    keep, where_present = tuple(asked["modules"]), tuple(asked["where-present"])
    if not wanted.dom0:
        keep, where_present = tuple(asked["domu"]), ()
    inputs: dict[str, JSON] = {
        "packages": lock_digest(context.lock, sets),
        "modules": sorted({*keep, *where_present}),
        "recipe": _RECIPE,
        **recipe(package.name for package in context.lock.packages(*sets)),
    }

    def build(made: Path) -> None:
        debs = fetch(sets, context)
        with (
            context.progress.stage(f"unpacking {wanted.name}"),
            context.cache.scratch("kernel") as scratch,
        ):
            for number, (package, deb) in enumerate(debs.items()):
                context.progress.tick(package.name, number, len(debs))
                packed.unpack_deb(deb, scratch, context.progress)
            release = _collect(scratch, made, keep, where_present)
            if wanted.buildable:
                _collect_headers(scratch, release, made, context.progress)
            else:
                _export_table(made, release)
            seal(made, release, dom0=wanted.dom0)

    return context.entry("kernel-debian", inputs, build)


def kernel_sets(wanted: Spec) -> list[str]:
    """The sets of packages that a packaged kernel is unpacked from."""
    return [wanted.packages[role] for role in ("image", "headers") if role in wanted.packages]


def _collect(tree: Path, made: Path, keep: Sequence[str], where_present: Sequence[str]) -> str:
    """Put the image, its configuration and its modules into `made`; returns its release."""
    # Until 7.1 a package has /boot/vmlinuz-RELEASE; from 7.2 on several have all below
    # /usr/lib/modules/RELEASE.
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if len(images) != 1:
        raise RigError(f"the packages hold {len(images)} kernels, one was expected")
    (image,) = images
    if image.name == "vmlinuz":
        release, config = image.parent.name, image.with_name("config")
    else:
        release = image.name.removeprefix("vmlinuz-")
        config = image.with_name(f"config-{release}")
    vmlinux = packed.extract_vmlinux(image.read_bytes(), what=image.name)
    (made / "vmlinux").write_bytes(vmlinux)
    shutil.copy(config, made / "config")
    modules = next(
        path for top in ("lib", "usr/lib") if (path := tree / top / "modules" / release).is_dir()
    )
    there = find_modules(modules)
    names = [*keep, *(name for name in where_present if plain(name) in there)]
    keep_modules(modules, names, made / "lib/modules" / release)
    return release


def _export_table(made: Path, release: str) -> None:
    """Write a Module.symvers of what the image itself and the modules that were kept export."""
    exports = ksymtab.read_exports(made / "vmlinux")
    for path in find_modules(made / "lib/modules" / release).values():
        exports.update(elf.read_module(path).exports)
    (made / "Module.symvers").write_text(ksymtab.render(exports))


def _collect_headers(tree: Path, release: str, made: Path, progress: Progress) -> None:
    headers = tree / f"usr/src/linux-headers-{release}"
    shutil.copy(headers / "Module.symvers", made / "Module.symvers")
    # The headers name each other by absolute paths: let them lie anywhere.
    makefile = headers / "Makefile"
    here = "$(dir $(lastword $(MAKEFILE_LIST)))"
    text = makefile.read_text().replace(" /usr/src/", f" {here}../")
    output = re.compile(r"^KBUILD_OUTPUT=/usr/src/\S+$", re.MULTILINE)
    makefile.write_text(output.sub("KBUILD_OUTPUT := $(CURDIR)", text))
    for arch in tree.glob("usr/src/linux-headers-*-common*/arch/*"):
        if arch.is_dir() and arch.name != "x86":
            shutil.rmtree(arch)
    (tree / "build").symlink_to(f"usr/src/{headers.name}")
    kept = ["build", "usr/src"]
    kept += [str(path.relative_to(tree)) for path in tree.glob("usr/lib/linux-kbuild-*")]
    if make_runnable(tree):
        kept.append(LIBRARIES)
    pack(tree, kept, made / "devel.tar", progress)
