"""QEMU with our patches, built from Debian's source package: x86_64 alone, TCG with plugins.

Sources: upstream's tarball with all patches that Debian has for it, both locked, and then
qemu-patches/. KVM is compiled in, as Debian has it: one of the faults is in what that adds
to TCG. The PC's firmware is this machine's, copied from where its packages install it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.errors import InputError
from emu.hosttools import builds_qemu, install_command, installs, load_packages
from emu.images import kbuild
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.fetch import fetch
from emu.images.manifest import JSON
from emu.images.packages import Lock, lock_digest
from emu.images.patching import apply_patch
from emu.images.replaced import lock_in_use, settled
from emu.progress import Progress
from emu.runprogram import run

KIND = "qemu"
PROGRAM = "qemu-system-x86_64"
OPTIONS = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    *("--enable-system", "--enable-tcg", "--enable-kvm", "--enable-plugins"),
    *("--enable-seccomp", "--enable-fdt"),
    *("--disable-docs", "--disable-werror"),
    "--disable-debug-info",  # half the time, and ccache need not mind where we build
)
FIRMWARE = (
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot.bin",
    "linuxboot_dma.bin",
    "multiboot.bin",
    "multiboot_dma.bin",
    "pvh.bin",
)
_FIRMWARE_PLACES = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
NOT_NEEDED = "not-needed"
"""The file beside a version's variants that names the patches which that version does not need:
it is right already, or has not gone wrong yet."""
_CCACHE = "ccache"
_ROOM = 1 << 30
"""Bytes that a build needs for a while (measured: 0.6 GiB)."""
_RECIPE = 1
"""Raised when the way it is built changes the outcome; a part of the cache key."""
_STEP = re.compile(r"\[(\d+)/(\d+)\] (.*)")


@dataclass(frozen=True)
class Patched:
    """A QEMU of ours: `name` is what --qemu takes, `version` whose source it is.

    Where the folder `version` of qemu-patches/ has a patch of the same name, that one is
    applied; those that its `not-needed` names are not. `own_meson`: it wants a newer meson
    than Debian 12 has, the Python package beside us. `options` are configure's, besides OPTIONS.
    """

    name: str
    version: str
    own_meson: bool = False
    options: tuple[str, ...] = ()

    @property
    def sets(self) -> tuple[str, str]:
        """Sets of packages.toml: upstream's tarball and Debian's patches."""
        return f"source-qemu-{self.version}", f"packaging-qemu-{self.version}"

    @property
    def series(self) -> tuple[Path, ...]:
        """Our patches, in the order they are applied."""
        folder = paths.qemu_patches()
        spared = not_needed(folder / self.version / NOT_NEEDED)
        every = kbuild.series(folder, self.version)
        if unknown := sorted(spared.keys() - {patch.name for patch in every}):
            raise InputError(f"{folder / self.version / NOT_NEEDED} names {', '.join(unknown)}, "
                             "which is no patch of ours")  # fmt: skip
        return tuple(patch for patch in every if patch.name not in spared)


PATCHED = {
    one.name: one
    for one in (
        Patched("patched", "7.2"),
        # Debian's source lacks the firmware that its configure looks for.
        Patched("patched-10.2", "10.2", True, ("--disable-install-blobs",)),
    )
}


def not_needed(path: Path) -> dict[str, str]:
    """Patches that a version does not need, with the first version seen to be right."""
    if not path.exists():
        return {}
    rows = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
    return {row[0]: row[1] for row in rows if row}


@settled
def build(wanted: Patched, context: BuildContext) -> Path:
    """The program, built (5 minutes on 2 cores) unless the cache has it.

    Raises InputError: a tool, a library or the firmware is missing, a patch does not apply,
    the source does not compile.
    """

    def fill(made: Path) -> None:
        _need_tools(wanted)
        with (
            context.progress.stage(f"building QEMU {wanted.version} with our patches"),
            kbuild.workplace(context.cache, KIND) as scratch,
        ):
            version = unpack(wanted, scratch, context)
            for patch in wanted.series:
                context.progress.tick(f"applying {patch.name}")
                apply_patch(patch, scratch)
            _compile(wanted, scratch, version, context)
            _collect(scratch / "build" / PROGRAM, made, context.progress)

    return context.entry(KIND, inputs(wanted, context.lock), fill, room=_ROOM) / "bin" / PROGRAM


def built(wanted: Patched, cache: Cache) -> Path | None:
    """The program if it is built already; builds nothing."""
    entry = cache.find(KIND, inputs(wanted, lock_in_use(cache)))
    return None if entry is None else entry / "bin" / PROGRAM


def inputs(wanted: Patched, lock: Lock) -> dict[str, JSON]:
    """Everything that a build depends on: what the cache knows it by."""
    return {
        "name": wanted.name,
        "packages": lock_digest(lock, wanted.sets),
        "patches": [_changes(patch) for patch in wanted.series],
        "options": [*OPTIONS, *wanted.options],
        "toolchain": kbuild.find_toolchain().version,
        "firmware": dict(zip(FIRMWARE, kbuild.digest(tuple(_firmware())), strict=True)),
        "host": _system(),
        "recipe": _RECIPE,
    }


def _changes(patch: Path) -> str:
    """The hash of what a patch changes: another message is no other QEMU."""
    head, _, changes = patch.read_text().partition("\ndiff --git ")
    return hashlib.sha256((changes or head).encode()).hexdigest()


def unpack(wanted: Patched, into: Path, context: BuildContext) -> str:
    """Debian's source, its patches applied, into `into`; its Debian version."""
    files = fetch(wanted.sets, context)
    versions = {package.version for package in files}
    version, *others = sorted(versions)
    if others or not re.match(rf"(\d+:)?{re.escape(wanted.version)}\b", version):
        raise InputError(
            f"packages.lock has QEMU {', '.join([version, *others])} for {wanted.name}, "
            f"our patches are for {wanted.version}",
            hint="qemu-patches/README.md explains how to port the series to another version",
        )
    source, packaging = (
        path for name in wanted.sets for package, path in files.items() if name in package.sets
    )
    context.progress.tick("unpacking the source")
    _run(["tar", "-x", "--strip-components=1", "-f", str(source)], into, context.progress)
    _run(["tar", "-x", "-f", str(packaging)], into, context.progress)
    for name in (into / "debian/patches/series").read_text().splitlines():
        if name := name.partition("#")[0].strip():
            context.progress.tick(f"applying Debian's {name}")
            patch = into / "debian/patches" / name
            # As dpkg-source does.
            flags = ["-t", "-F0", "-N", "-p1", "-s", "-V", "never"]
            _run(["patch", *flags, "-i", str(patch)], into, context.progress)
    return version


def _need_tools(wanted: Patched) -> None:
    missing = [
        package.name
        for package in load_packages()
        if package.needed_for == "qemu" and package.lacks
    ]
    if wanted.own_meson and importlib.util.find_spec("mesonbuild") is None:
        raise InputError(
            f"QEMU {wanted.version} needs the Python package meson, 1.5 or newer",
            hint=_either(wanted, "pip install meson"),
        )
    if missing:
        raise InputError(
            f"to build QEMU this machine lacks {', '.join(missing)}",
            hint=_either(wanted, install_command(missing)),
        )


def _either(wanted: Patched, command: str) -> str:
    """What installs what a build needs; in a checkout the target that builds as well."""
    return command if paths.installed() else f"{builds_qemu(wanted.name)}, or {command}"


def _compile(wanted: Patched, tree: Path, version: str, context: BuildContext) -> None:
    toolchain = kbuild.find_toolchain()
    compiler = f"ccache {toolchain.cc}" if shutil.which("ccache") else toolchain.cc
    environ = {
        "CCACHE_DIR": str(context.cache.store(_CCACHE)),
        "CCACHE_MAXSIZE": "1G",
        # The source is in another place each time, and named by its whole path.
        "CCACHE_BASEDIR": str(tree),
    }
    place = tree / "build"
    place.mkdir()
    own = [f"--cc={compiler}", f"--with-pkgversion=Debian {version}, patched by emu-xen-block"]
    if wanted.own_meson:
        own.append(f"--python={sys.executable}")
    status, printed = kbuild.follow(
        [str(tree / "configure"), *own, *OPTIONS, *wanted.options],
        place,
        lambda line: context.progress.tick(f"configure: {line.strip()}"),
        context.progress,
        environ=environ,
    )
    if status:
        raise InputError("QEMU can't be configured", lines=kbuild.first_errors(printed))

    def each(line: str) -> None:
        if step := _STEP.match(line):
            context.progress.tick(step[3], int(step[1]), int(step[2]))

    status, printed = kbuild.follow(
        ["ninja", PROGRAM], place, each, context.progress, environ=environ
    )
    if status:
        raise InputError("QEMU can't be built", lines=kbuild.first_errors(printed))


def _collect(program: Path, made: Path, progress: Progress) -> None:
    """The program and its firmware, where it looks: ../share/qemu, seen from the program."""
    binaries, firmware = made / "bin", made / "share/qemu"
    for folder in (binaries, firmware):
        folder.mkdir(parents=True)
    _run(["strip", "-s", "-o", str(binaries / PROGRAM), str(program)], made, progress)
    for path in _firmware():
        shutil.copyfile(path, firmware / path.name)


def _firmware() -> Iterator[Path]:
    """The PC's firmware on this machine, as in FIRMWARE. Raises InputError for what is missing."""
    for name in FIRMWARE:
        found = next((place / name for place in _FIRMWARE_PLACES if (place / name).exists()), None)
        if found is None:
            raise InputError(f"the firmware {name} is not on this machine", hint=installs(PROGRAM))
        yield found


def _system() -> str:
    """This machine's system, whose libraries the program is linked with."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return f"{release.get('ID', 'unknown')} {release.get('VERSION_ID', '')}".strip()


def _run(command: Sequence[str], folder: Path, progress: Progress) -> None:
    failed = f"{command[0]} failed on QEMU's source"
    run(command, failed, error=InputError, cwd=folder, progress=progress)
