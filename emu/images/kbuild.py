"""Running the kernel's makefiles: which compiler, where, with which patches.

What is built depends on its inputs only: the environment is ours, times are fixed, and
the names of the directories we build in do not reach the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu import runprogram
from emu.errors import InputError
from emu.images.cache import Cache
from emu.progress import Progress
from emu.runprogram import run

_EPOCH = "2026-01-01 00:00:00 UTC"
_STEP = re.compile(r" {2,4}[A-Z]+(?: \[M\])? +\S")
_TEMPORARY = "emu-build-"
_CCACHE_SIZE = "2G"
"""Of compiled files, compressed; a lab kernel's are some 100 MB."""
_GELF = b"#include <gelf.h>\n"


@dataclass(frozen=True)
class Toolchain:
    """A C compiler and what it and its linker call themselves (a part of cache keys)."""

    cc: str
    version: str


class BuildFailed(InputError):
    """What make was to build cannot be built; `output` is all that it printed."""

    output: tuple[str, ...] = ()


def find_toolchain(config: str = "") -> Toolchain:
    """`$EMU_CC`, else the gcc of the major version that `config` (a kernel's) was made with,
    else gcc. Raises InputError when there is no compiler, linker or make.
    """
    _need_tools({"make": "make", "ld": "binutils"})
    major = re.search(r"^CONFIG_GCC_VERSION=(\d+)\d{4}$", config, re.MULTILINE)
    asked = os.environ.get("EMU_CC")
    matching = [f"gcc-{major[1]}"] if major else []
    candidates = [asked] if asked else [*matching, "gcc-12", "gcc"]
    for cc in candidates:
        if shutil.which(cc):
            return Toolchain(cc, f"{_first_line([cc, '--version'])}; {_first_line(['ld', '-v'])}")
    where = "$EMU_CC names" if asked else "there is no compiler:"
    raise InputError(f"{where} {candidates[0]}, which is not there", hint="apt-get install gcc")


def other_compiler(toolchain: Toolchain, config: str) -> str | None:
    """Why modules of a kernel may be built by another compiler than it; None if it is the same.

    gcc's ABI is that of the platform, and what a module and its kernel have to agree on besides
    (thunks, stack protector, cleared registers) are options which `config` sets and every later
    gcc has; what an older one lacks, `without_newer_flags` leaves out. kbuild only warns of the
    difference. gcc's plugins are another matter: they may lay out structures anew, and are built
    for one gcc. Raises InputError for those.
    """
    kernels = re.search(r"^CONFIG_GCC_VERSION=(\d+)(\d\d)(\d\d)$", config, re.MULTILINE)
    ours = re.search(r"\) (\d+(?:\.\d+)+)", toolchain.version)
    if kernels is None:
        return None
    built_by = ".".join(str(int(part)) for part in kernels.groups())
    named = f"gcc {ours[1]}" if ours else toolchain.version
    if ours and ours[1] == built_by:
        return None
    if re.search(r"^CONFIG_GCC_PLUGINS=y$", config, re.MULTILINE):
        raise InputError(
            f"this kernel was built by gcc {built_by} with plugins (CONFIG_GCC_PLUGINS), "
            f"the compiler here is {named}",
            hint=f"apt-get install gcc-{kernels[1]}, or EMU_CC=… names one",
        )
    return (
        f"{named}, where the kernel's was gcc {built_by}: fine, the kernel's configuration sets "
        "what both must agree on, and has no gcc plugins"
    )


_NEWER_FLAGS = {"CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT": "-fmin-function-alignment=16"}
"""Options of a configuration that say what its compiler can do, and the flag that each stands for
(gcc 14 has this one; without it kbuild aligns functions with -falign-functions)."""


def without_newer_flags(toolchain: Toolchain, config: str) -> list[str]:
    """Arguments for make that switch off what the compiler of `config` could and ours can't."""
    return [
        f"{option}="
        for option, flag in _NEWER_FLAGS.items()
        if re.search(rf"^{option}=y$", config, re.MULTILINE) and not _accepts(toolchain, flag)
    ]


def _accepts(toolchain: Toolchain, flag: str) -> bool:
    probe = [toolchain.cc, flag, "-x", "c", "-fsyntax-only", "-"]
    return run(probe).status == 0


def need_kernel_tools(toolchain: Toolchain) -> None:
    """Raise InputError unless this machine has the tools to build a whole kernel."""
    _need_tools({"flex": "flex", "bison": "bison", "bc": "bc", "perl": "perl", "strip": "binutils"})
    probe = [toolchain.cc, "-x", "c", "-fsyntax-only", "-"]
    hint = "apt-get install libelf-dev"
    run(probe, "objtool needs libelf's headers", error=InputError, data=_GELF, hint=hint, lines=0)


def series(directory: Path, version: str = "") -> tuple[Path, ...]:
    """The patches of a directory in the order they are applied: by name.

    Where `directory/<version>/` has a patch of the same name, that replaces it: a
    change that differs in one version ("6.12").
    """
    if not directory.is_dir():
        raise InputError(f"there is no directory of patches {directory}")
    patches = {path.name: path for path in directory.glob("*.patch")}
    variants = {path.name: path for path in directory.glob(f"{version}/*.patch")} if version else {}
    if unknown := sorted(variants.keys() - patches.keys()):
        raise InputError(
            f"{directory / version} has {', '.join(unknown)}, which {directory} has not",
            hint="a variant has the name of the patch that it replaces",
        )
    return tuple(path for _, path in sorted((patches | variants).items()))


def digest(paths: Sequence[Path]) -> tuple[str, ...]:
    """SHA-256 of each file: a part of cache keys."""
    return tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)


@contextlib.contextmanager
def workplace(cache: Cache, what: str) -> Iterator[Path]:
    """An empty directory whose path kbuild can take: one without spaces and colons.

    In the cache if its path allows that, else in /tmp; removed afterwards.
    """
    with cache.scratch(what) as scratch:
        if not re.search(r"[\s:]", str(scratch.resolve())):
            yield scratch
            return
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    base = next(Path(place) for place in places if not re.search(r"[\s:]", place))
    _sweep(base)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=base) as path:
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(path)
        finally:
            os.close(handle)


def make(
    tree: Path,
    *arguments: str,
    toolchain: Toolchain,
    progress: Progress,
    what: str,
    steps: int | None = None,
    hide: Path | None = None,
    ccache: Path | None = None,
) -> list[str]:
    """Run make in `tree`, report each step of about `steps`; returns the lines it printed.

    `hide` is the directory whose name must not get into the result. `ccache` is where what is
    compiled is kept for the next time, if this machine has ccache. Raises BuildFailed
    with the compiler's errors when it fails. make does not outlive this process.
    """
    hide = (hide or tree).resolve()
    environ = {} if ccache is None else _ccache(ccache, hide)
    cc = f"ccache {toolchain.cc}" if environ else toolchain.cc
    command = [
        "make", f"-j{len(os.sched_getaffinity(0))}", f"CC={cc}",
        f"HOSTCC={cc}", f"KCFLAGS=-ffile-prefix-map={hide}=.",
        f"KAFLAGS=-ffile-prefix-map={hide}=.", *arguments,
    ]  # fmt: skip
    done = 0

    def each(line: str) -> None:
        nonlocal done
        if _STEP.match(line):
            done += 1
            progress.tick(line.strip().replace(f"{hide}/", ""), done, steps)

    status, lines = follow(command, tree, each, progress, environ=environ)
    lines = [line.replace(f"{hide}/", "") for line in lines]
    if status:
        failed = BuildFailed(f"{what} cannot be built", lines=first_errors(lines))
        failed.output = tuple(lines)
        raise failed
    return lines


def _ccache(place: Path, hide: Path) -> dict[str, str]:
    """The environment that makes ccache keep its files in `place`; empty without ccache.

    A directory whose name does not get into the result need not be the same for a hit, nor an
    option that a file does not use: every file includes autoconf.h, so that what counts is the
    preprocessor's output (ccache's depend mode would not look at that).
    """
    if not shutil.which("ccache"):
        return {}
    return {
        "CCACHE_DIR": str(place),
        "CCACHE_BASEDIR": str(hide),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_MAXSIZE": _CCACHE_SIZE,
        "CCACHE_SLOPPINESS": "time_macros",
    }


def follow(
    command: Sequence[str],
    folder: Path,
    each: Callable[[str], None],
    progress: Progress,
    *,
    environ: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run a build tool in `folder` and pass on each line it prints; its status and all lines.

    `environ` is added to an environment of ours. The tool does not outlive this process.
    Raises InputError where it is not installed, RigError when it prints nothing for long.
    """
    _need_tools({command[0]: command[0]})
    env = {**_environ(), **(environ or {})}
    return runprogram.follow(command, each, cwd=folder, env=env, progress=progress)


def first_errors(lines: list[str]) -> list[str]:
    """The lines that show why a build failed: a few from the first error on."""
    first = next((n for n, line in enumerate(lines) if re.search(r"\b(error|ERROR)\b", line)), None)
    return lines[-8:] if first is None else lines[first : first + 8]


def _need_tools(packages: Mapping[str, str]) -> None:
    missing = {tool: package for tool, package in packages.items() if not shutil.which(tool)}
    if missing:
        raise InputError(
            f"{', '.join(missing)} is missing on this machine",
            hint=f"apt-get install {' '.join(dict.fromkeys(missing.values()))}",
        )


def _first_line(command: list[str]) -> str:
    return (run(command, env=_environ()).text.splitlines() or ["unknown"])[0]


def _environ() -> dict[str, str]:
    """No CFLAGS, MAKEFLAGS, ARCH… of the user's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {
        "LC_ALL": "C",
        "KBUILD_BUILD_TIMESTAMP": _EPOCH,
        "KBUILD_BUILD_USER": "emu",
        "KBUILD_BUILD_HOST": "emu",
        "KBUILD_BUILD_VERSION": "1",
    }


def _sweep(base: Path) -> None:
    """Remove our workplaces in `base` whose owner is gone."""
    for path in base.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                found = os.fstat(handle)
                # One just made may not be locked yet.
                if found.st_uid == os.getuid() and time.time() - found.st_ctime > 60:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
