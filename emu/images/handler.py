"""The LUN server: our handler for tcmu-runner, a shared library in C.

Sources: guest-images/handler/. Debian's tcmu-runner in dom0 loads it, whatever this machine runs:
it is compiled against that tcmu-runner's headers and linked with dom0's C library, from locked
packages of its suite. So a symbol version that is newer than dom0's is a link error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from emu import paths
from emu.errors import InputError
from emu.images import cbuild, kbuild
from emu.images.context import BuildContext
from emu.images.fetch import fetch
from emu.images.manifest import JSON
from emu.images.packages import lock_digest
from emu.images.patching import apply_patch
from emu.images.replaced import settled
from emu.images.xens import Xen
from emu.runprogram import run

SOURCE = "source-tcmu-runner"
"""The set with the source of tcmu-runner."""
NAME = "handler_ledger.so"
"""File name in dom0; tcmu-runner loads `handler_*.so`."""
FLAGS = (
    *cbuild.FLAGS,
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-U_FORTIFY_SOURCE",
    "-shared",
    "-nostdlib",
    "-nostdinc",
    "-Wl,-z,now",
)
_RECIPE = 1
"""Part of the cache key: incremented when a change of the build changes its result."""
_LIBRARY = "x86_64-linux-gnu"
_PROVIDED = re.compile(r"tcmur?_\w+")
"""Symbols that tcmu-runner and its library export to handlers."""
LIBRARIES = ("libc.so.6", "libpthread.so.0")
"""The C library: before glibc 2.34 threads were a library of their own."""
_UNVERSIONED = ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")


@settled
def build(xen: Xen, context: BuildContext) -> Path:
    """The handler for the dom0 of a Xen, from the cache or built (seconds).

    Raises InputError without a compiler, or if it needs symbols that dom0 lacks.
    """
    toolchain = kbuild.find_toolchain()
    folder = paths.guest_images() / "handler"
    inputs: dict[str, JSON] = {
        "packages": lock_digest(context.lock, [SOURCE, xen.libc]),
        "headers": list(kbuild.digest(_patches(xen))),
        "sources": cbuild.sources(folder),
        "flags": list(FLAGS),
        "toolchain": toolchain.version,
        "recipe": _RECIPE,
    }

    def fill(made: Path) -> None:
        with context.cache.scratch("handler") as scratch:
            unpack(scratch, xen, context)
            with context.progress.stage("compiling the LUN server"):
                sources = [*(path.name for path in sorted(folder.glob("*.c"))), cbuild.CRC32]
                include, library = search(toolchain.cc, scratch)
                output = ["-o", str(made / NAME)]
                _run([toolchain.cc, *FLAGS, *include, *output, *sources, *library], folder)
        missing = sorted(unprovided(made / NAME))
        if missing:
            raise InputError(f"the LUN server needs {', '.join(missing)}, which dom0 lacks")

    return context.entry("lun-server", inputs, fill) / NAME


def unpack(into: Path, xen: Xen, context: BuildContext) -> None:
    """tcmu-runner's source to `into/tcmu-runner`, the C library to `into/usr` and `into/lib`."""
    files = fetch([SOURCE, xen.libc], context)
    (tarball,) = (path for package, path in files.items() if SOURCE in package.sets)
    source = into / "tcmu-runner"
    source.mkdir()
    _run(["tar", "-x", "--strip-components=1", "-f", str(tarball)], source)
    for patch in _patches(xen):
        apply_patch(patch, source)
    for package, path in files.items():
        if xen.libc in package.sets:
            _run(["dpkg-deb", "-x", str(path), str(into)], into)


def _patches(xen: Xen) -> list[Path]:
    """What makes the headers those of dom0's tcmu-runner, where it is not the one of the source."""
    return sorted((paths.guest_images() / "handler").glob(f"tcmu-runner-{xen.tcmu_runner}.patch"))


def search(cc: str, unpacked: Path) -> tuple[list[str], list[str]]:
    """Compiler flags for headers (the compiler's own first), and the libraries to link with."""
    own = _run([cc, "-print-file-name=include"], unpacked).strip()
    usr, source = unpacked / "usr/include", unpacked / "tcmu-runner"
    folders = (own, usr / _LIBRARY, usr, source, source / "ccan")
    include = [word for folder in folders for word in ("-isystem", str(folder))]
    # Packages of suites before trixie have them in /lib.
    places = (unpacked / lib / _LIBRARY / name for lib in ("usr/lib", "lib") for name in LIBRARIES)
    return include, ["-Wl,--as-needed", *(str(place) for place in places if place.is_file())]


def versions_needed(library: Path) -> dict[str, set[str]]:
    """The symbol versions that a shared library needs, by library."""
    with library.open("rb") as file:
        try:
            sections = list(ELFFile(file).iter_sections())
            return {
                str(need.name): {str(version.name) for version in versions}
                for section in sections
                if isinstance(section, GNUVerNeedSection)
                for need, versions in section.iter_versions()
            }
        except ELFError as error:
            raise InputError(f"{library} is not a shared library: {error}") from error


def unprovided(library: Path) -> set[str]:
    """Symbols and libraries it needs that neither the C library nor tcmu-runner has."""
    lacking = set(versions_needed(library)) - set(LIBRARIES)
    with library.open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym")
        bound = elf.get_section_by_name(".gnu.version")
        if not isinstance(symbols, SymbolTableSection) or not isinstance(bound, GNUVerSymSection):
            raise InputError(f"{library} has no symbol versions")
        for number, symbol in enumerate(symbols.iter_symbols()):
            weak = symbol["st_info"]["bind"] == "STB_WEAK"
            if symbol["st_shndx"] != "SHN_UNDEF" or not symbol.name or weak:
                continue
            version = bound.get_symbol(number)["ndx"]
            if version in _UNVERSIONED and not _PROVIDED.fullmatch(symbol.name):
                lacking.add(symbol.name)
    return lacking


def _run(command: Sequence[str], folder: Path) -> str:
    failed = "the LUN server cannot be built"
    return run(command, failed, error=InputError, lines=12, cwd=folder).text


__all__ = ["NAME", "build", "search", "unpack", "unprovided", "versions_needed"]
