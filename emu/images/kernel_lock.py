"""Locking every Linux that Debian's archives hold: what `emu images lock` puts into kernels.lock.

Everything is derived from the archives' indexes: which images there are, what each is split into
(from 6.19 on into several packages), and for which of them the archive still has headers, and the
source package of exactly that version. Each kernel has its own sets, `<role>-<release>`: "image",
and where it can have modules of ours "headers" and "source". Of an image that has lost a part
(trixie-backports has those of 6.19 to 7.1 without their modules) the set is "incomplete".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from debian.debian_support import Version

from emu.images.apt import Apt, Record
from emu.images.catalogue import line_of
from emu.images.context import BuildContext
from emu.images.mirrors import Mirrors, find_mirrors
from emu.images.packages import (
    INCOMPLETE,
    Lock,
    WantedKernels,
    digest_of_kernels,
    kernel_set,
)
from emu.images.resolve import locked

_KERNEL = re.compile(r"linux-(image|base|binary|modules|headers|kbuild|source)-\d\S*")
"""The packages that are looked at; those with debug symbols, or for signing, are not asked for."""
_RELEASE = re.compile(r"linux-image-(\d[^-]*(?:-[^-]*\d)?(?:-cloud)?-amd64)")
"""An image's name, and the release in it: "6.1.0-56-amd64", "6.12.107+deb13-cloud-amd64"."""
_HEADERS = re.compile(r"linux-headers-\S+-common|linux-kbuild-\S+")
_LIBRARY = re.compile(r"(lib|zlib)\S+")
_BUILDING = re.compile(rf"{_HEADERS.pattern}|{_LIBRARY.pattern}")


@dataclass(frozen=True)
class FoundKernel:
    """A Linux in an index: the packages of its image, and of its headers where it has any.

    `complete`: the index has all that the image consists of.
    """

    release: str
    image: tuple[Record, ...]
    headers: tuple[Record, ...] = ()
    source: tuple[Record, ...] = ()
    complete: bool = True

    def sets(self) -> Iterator[tuple[str, Record]]:
        """Each package with the name of its set."""
        image = "image" if self.complete else INCOMPLETE
        roles = {image: self.image, "headers": self.headers, "source": self.source}
        for role, records in roles.items():
            for record in records:
                yield kernel_set(role, self.release), record


def renew_kernels(
    wanted: WantedKernels, context: BuildContext, *, mirrors: Mirrors | None = None
) -> Lock:
    """Lock the kernels that the mirrors have now; the caller saves it."""
    mirrors = mirrors or find_mirrors()
    found: dict[tuple[str, Record], set[str]] = {}
    releases: set[str] = set()
    with context.cache.lock("debs", "asks for kernels", context.progress):
        for archive in wanted.archives:
            apt = Apt(context.cache.store("apt") / archive.name, archive, mirrors)
            apt.update(context.progress)
            context.progress.tick(f"the kernels of {archive.name}")
            for kernel in kernels_of(apt, archive.name in wanted.libraries):
                if kernel.release in releases:
                    continue
                releases.add(kernel.release)
                for name, record in kernel.sets():
                    found.setdefault((archive.name, record), set()).add(name)
    entries = [locked(archive, record, sets) for (archive, record), sets in found.items()]
    entries.sort(key=lambda package: (package.archive, package.name, Version(package.version)))
    return Lock(digest_of_kernels(wanted), tuple(entries))


def kernels_of(apt: Apt, libraries: bool) -> list[FoundKernel]:
    """The kernels in the index of an archive, by release; with `libraries` those that the
    programs of their headers want.
    """
    names = filter(_KERNEL.fullmatch, apt.names())
    index = Index(apt.every_record(names))
    if libraries:
        wanting = [one for one in index.every() if one.name.startswith("linux-kbuild-")]
        while missing := {
            name for one in wanting for name in _names(one, _LIBRARY) if name not in index.known
        }:
            index.known |= missing
            wanting = apt.every_record(missing)
            index.add(wanting)
    return find_kernels(index, libraries)


class Index:
    """Records of an archive's index by name, the newest version of each first."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: dict[str, list[Record]] = {}
        self.known: set[str] = set()
        """Names that were asked for, whether there is such a package or not."""
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            self._records.setdefault(record.name, []).append(record)
            self.known.add(record.name)
        for same in self._records.values():
            same.sort(key=lambda record: Version(record.version), reverse=True)

    def every(self) -> Iterator[Record]:
        for same in self._records.values():
            yield from same

    def pick(self, name: str, version: str = "", *, exactly: bool = True) -> Record | None:
        """A package of that version; without one, or unless `exactly`, the newest."""
        same = self._records.get(name, [])
        for record in same:
            if record.version == version:
                return record
        return same[0] if same and not (version and exactly) else None


def find_kernels(index: Index, libraries: bool) -> list[FoundKernel]:
    """What an index has, derived from the dependencies in its records."""
    found: dict[str, FoundKernel] = {}
    for record in index.every():
        named = _RELEASE.fullmatch(record.name)
        # A metapackage ("linux-image-6.12-amd64") depends on the image that is meant. Of a name
        # the newest version comes first.
        if named and named[1] not in found and not _names(record, _RELEASE):
            found[named[1]] = _found(index, named[1], record, libraries)
    return [found[release] for release in sorted(found)]


def _found(index: Index, release: str, image: Record, libraries: bool) -> FoundKernel:
    own = re.escape(release)
    needed = re.compile(rf"linux-(binary|modules)-{own}")
    if not all(index.pick(name, image.version) for name in _names(image, needed)):
        return FoundKernel(release, (image,), complete=False)
    # linux-base-… has the configuration from 7.2 on, and before that documentation alone.
    parts = _closure(index, image, re.compile(rf"linux-(base|binary|modules)-{own}"))
    source = index.pick(f"linux-source-{line_of(image.version)}", image.version)
    headers = index.pick(f"linux-headers-{release}", image.version)
    if not (headers and source):
        return FoundKernel(release, parts)
    building = _closure(index, headers, _BUILDING if libraries else _HEADERS)
    return FoundKernel(release, parts, building, (source,))


def _closure(index: Index, record: Record, wanted: re.Pattern[str]) -> tuple[Record, ...]:
    """A record and all it depends on whose names match.

    What has the record's version, if the archive has that: linux-kbuild-6.1 is one package for
    all kernels of that line.
    """
    kept, waiting = {record.name: record}, [record]
    while waiting:
        for name in _names(waiting.pop(), wanted):
            needed = index.pick(name, record.version, exactly=False)
            if needed and name not in kept:
                kept[name] = needed
                waiting.append(needed)
    return tuple(kept[name] for name in sorted(kept))


def _names(record: Record, pattern: re.Pattern[str]) -> list[str]:
    """The names that a package depends on, of those that match."""
    return [name for choices in record.depends for name in choices if pattern.fullmatch(name)]
