"""Where the drivers' source comes from: a kernel's source package, or a tree on this machine.

    source = package_source(spec("debian-6.12"), context)
    source = read_tree(Path("~/linux").expanduser())
    source.copy(place, context)         # place/drivers/block/xen-blkfront.c …

Only what can be built outside a kernel belongs to it: the front end, the folder of the back
end, and (of a tree) the header of their protocol, which nothing else in Linux includes.
"""

from __future__ import annotations

import abc
import hashlib
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from emu.errors import InputError, RigError
from emu.images import packed
from emu.images.built_kernel import source_deb
from emu.images.catalogue import line_of
from emu.images.context import BuildContext
from emu.images.git_state import GitState, git_state
from emu.images.kernel_specs import Spec
from emu.images.manifest import JSON
from emu.images.packages import lock_digest
from emu.images.replaced import settled

FRONT = "drivers/block/xen-blkfront.c"
BACK = "drivers/block/xen-blkback/"
HEADER = "include/xen/interface/io/blkif.h"
"""The protocol of both ends. (Linux 5.10 to 7.3: only the two drivers include it.)"""

_SOURCES = (FRONT, BACK)
_BUILT_FROM = {".c", ".h"}
_MAKEFILES = {"Makefile", "Kbuild", "Kconfig"}
_RECIPE = 2
"""Raised when what is taken out of a package changes; a part of cache keys."""


@dataclass(frozen=True)
class DriverSource(abc.ABC):
    """The source of both drivers, as some kernel has it.

    `origin` is for people ("linux-source-6.12 6.12.95-1", "/home/me/linux"), `release` the
    kernel's version as far as it is known ("7.3.4", "7.4.0-rc1"), `version` its first two
    numbers ("7.3"), which select the variants of a series; `digest` stands for the content in
    cache keys.
    """

    origin: str
    release: str
    digest: str

    @property
    def version(self) -> str:
        """The release line: "7.3" of "7.3.4" and of "7.3.0-rc1"."""
        return line_of(self.release)

    @abc.abstractmethod
    def copy(self, into: Path, context: BuildContext, *, header: bool = False) -> None:
        """Write the files below `into`, by their names in a kernel tree.

        `header`: with that of the protocol, where there is none without.
        """


@dataclass(frozen=True)
class PackageSource(DriverSource):
    """The source in a linux-source package, which is fetched when it is first copied.

    `headers` is a tar of the kernel's headers, which has the protocol's.
    """

    spec: Spec
    headers: Path | None = None

    def copy(self, into: Path, context: BuildContext, *, header: bool = False) -> None:
        shutil.copytree(driver_source(self.spec, context) / "drivers", into / "drivers")
        if header and self.headers is not None:
            with tarfile.open(self.headers) as archive:
                member = next(one for one in archive if one.name.endswith(f"/{HEADER}"))
                content = archive.extractfile(member)
                assert content is not None
                (into / HEADER).parent.mkdir(parents=True)
                (into / HEADER).write_bytes(content.read())


@dataclass(frozen=True)
class TreeSource(DriverSource):
    """The source in a kernel tree, as it was when it was read: `files` are names and contents."""

    tree: Path
    git: GitState | None
    files: tuple[tuple[str, bytes], ...] = field(repr=False)

    @property
    def state(self) -> str:
        """The commit and whether the drivers differ from it, or the version without git."""
        return str(self.git or f"Linux {self.release}")

    def copy(self, into: Path, context: BuildContext, *, header: bool = False) -> None:
        for name, content in self.files:
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def package_source(
    wanted: Spec, context: BuildContext, headers: Path | None = None
) -> PackageSource:
    """The drivers' source of a kernel of kernels.toml; `headers` as in `PackageSource`."""
    sets = [wanted.packages["source"]]
    package = next(
        one for one in context.lock.packages(*sets) if one.name.startswith("linux-source-")
    )
    release = package.version.partition("-")[0].partition("~")[0]
    digest = lock_digest(context.lock, sets)
    return PackageSource(f"{package.name} {package.version}", release, digest, wanted, headers)


def read_tree(tree: Path) -> TreeSource:
    """The drivers' source in a kernel tree. Nothing is written there.

    Raises InputError for a directory that is no kernel tree, or has no Xen block drivers.
    """
    tree = tree.expanduser().absolute()
    release = tree_release(tree)
    names = [FRONT, *_back_files(tree), *([HEADER] if (tree / HEADER).is_file() else [])]
    try:
        files = tuple((name, (tree / name).read_bytes()) for name in names)
    except OSError as error:
        raise InputError(
            f"{tree} (Linux {release}): {error.filename} cannot be read: {error.strerror}"
        ) from error
    whole = hashlib.sha256()
    for name, content in files:
        whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    state = git_state(tree, FRONT, BACK, HEADER)
    return TreeSource(str(tree), release, whole.hexdigest(), tree, state, files)


def tree_release(tree: Path) -> str:
    """The version that a kernel tree's Makefile gives: "7.3.4", "7.4.0-rc1".

    Raises InputError for what is no kernel tree.
    """
    if not tree.is_dir():
        raise InputError(f"there is no directory {tree}", hint="give the top of a kernel tree")
    try:
        text = (tree / "Makefile").read_text(errors="replace")
    except OSError:
        text = ""
    found: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*) *$", text, re.MULTILINE)
    )
    if not found.get("VERSION", "").isdecimal() or not found.get("PATCHLEVEL", "").isdecimal():
        top = next((up for up in tree.parents if (up / "Kbuild").is_file()), None)
        raise InputError(
            f"{tree} is no kernel tree: it has no Makefile with VERSION and PATCHLEVEL",
            hint=f"its top is {top}" if top else "give the top of a kernel tree",
        )
    numbers = ".".join(found.get(name) or "0" for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    return numbers + found.get("EXTRAVERSION", "")


def _back_files(tree: Path) -> Iterator[str]:
    """The files that the back end is built from, by name; not what a build has left there."""
    found = [
        str(path.relative_to(tree))
        for path in sorted((tree / BACK).rglob("*"))
        if (path.suffix in _BUILT_FROM or path.name in _MAKEFILES)
        # What kbuild generates (xen-blkback.mod.c) is not source.
        and not path.name.endswith(".mod.c")
        and path.is_file()
    ]
    missing = [name for name in (FRONT, f"{BACK}Makefile") if not (tree / name).is_file()]
    if missing:
        raise InputError(f"{tree} is no tree with the Xen block drivers: it has no {missing[0]}")
    yield from found


@settled
def driver_source(wanted: Spec, context: BuildContext) -> Path:
    """A directory with `drivers/block/…` as the kernel's source package has it, unpatched."""
    return files_of_source(
        wanted, _SOURCES, context, kind="driver-source", what="the drivers' source", recipe=_RECIPE
    )


def files_of_source(
    wanted: Spec,
    files: tuple[str, ...],
    context: BuildContext,
    *,
    kind: str,
    what: str,
    recipe: int,
) -> Path:
    """A directory with these files of a kernel's source package, an entry of `kind` in the cache.

    A name with a slash at the end is a directory with all it has. `what` names them for people.
    """
    inputs: dict[str, JSON] = {
        "source": lock_digest(context.lock, [wanted.packages["source"]]),
        "files": list(files),
        "recipe": recipe,
    }

    def build(made: Path) -> None:
        deb = source_deb(wanted, context)
        with context.progress.stage(f"taking {what} out of {deb.name}"):
            _extract(deb, files, made, lambda done: context.progress.tick("read (bytes)", done))

    return context.entry(kind, inputs, build)


def _extract(deb: Path, wanted: tuple[str, ...], made: Path, tick: Callable[[int], None]) -> None:
    """Write these files (and directories: with a slash at the end) of a linux-source package.

    The archive is sorted, so reading stops behind them.
    """
    found: set[str] = set()
    with (
        packed.source_tar(deb) as source,
        tarfile.open(fileobj=source, mode="r|") as archive,
    ):
        for member in archive:
            name = member.name.partition("/")[2]
            if name.startswith(wanted) and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
                found.add(next(one for one in wanted if name.startswith(one)))
            elif len(found) == len(wanted):
                return
            tick(member.offset)
    if len(found) < len(wanted):
        raise RigError(f"{deb.name} has no {', '.join(sorted(set(wanted) - found))}")
