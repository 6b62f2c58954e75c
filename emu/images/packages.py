"""The Debian packages that go into the guests: wanted and locked (emu.images.fetch gets them).

`guest-images/packages.toml` lists what is wanted: named sets of packages, where from, and
what is dropped of all they depend on. `guest-images/packages.lock` has the outcome, a
line a package with version and SHA-256. Only what matches the lock is ever used.

The kernels that packages.toml does not name one by one are locked in `kernels.lock`, which looks
the same (emu.images.kernel_lock makes it, emu.images.catalogue reads it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.images.apt import PACKAGING, SOURCE, Archive

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

RENEW = "emu images lock"
PACKAGES, KERNELS = "packages.lock", "kernels.lock"
"""The two locks, in guest-images/."""


@dataclass(frozen=True)
class Wanted:
    """One set of packages.toml.

    `drop` has patterns of package names, each with the reason why the set does without;
    `leave_out` has patterns of paths that a tree made of the set does not need.
    """

    name: str
    archive: Archive
    packages: tuple[str, ...]
    drop: Mapping[str, str]
    leave_out: tuple[str, ...]


@dataclass(frozen=True)
class WantedKernels:
    """The table `kernels` of packages.toml: all Linux images of `archives`, in this order.

    `libraries` names the archives whose headers bring the C library that their programs want.
    """

    archives: tuple[Archive, ...]
    libraries: frozenset[str]


@dataclass(frozen=True)
class Package:
    """One line of the lock; `size` is that of the file in bytes, `sets` those it is in.

    The file is a .deb or, where `arch` is "source", upstream's tarball ("packaging": Debian's).
    `instead_of` is empty for what the lock has; of a package that was taken in place of a locked
    one it has name and version of that (emu.images.replaced).
    """

    archive: str
    name: str
    version: str
    arch: str
    sha256: str
    size: int
    sets: tuple[str, ...]
    instead_of: str = ""

    @property
    def file_name(self) -> str:
        """As the cache has it (a .deb as apt names it: an epoch's colon is written %3a)."""
        kind = "tar" if self.arch in (SOURCE, PACKAGING) else "deb"
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.{kind}"

    def downloaded(self, folder: Path) -> Path | None:
        """The file in a directory that apt downloaded packages into."""
        # A tarball has the name of its own compression, upstream's no Debian revision.
        version = self.version.rpartition(":")[2]
        mine = {
            SOURCE: f"{self.name}_{version.rpartition('-')[0]}.orig.tar.*",
            PACKAGING: f"{self.name}_{version}.debian.tar.*",
        }.get(self.arch, self.file_name)
        return next(iter(folder.glob(mine)), None)


@dataclass(frozen=True)
class Lock:
    """What packages.toml resolved to; `wants` is the digest of its content then."""

    wants: str
    entries: tuple[Package, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> Lock:
        """Read a lock (default: packages.lock); InputError names the line that makes no sense."""
        path = path or paths.guest_images() / PACKAGES
        wants, entries = "", []
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", hint=RENEW) from error
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            if fields[0] == "wants" and len(fields) == 2:
                wants = fields[1]
            elif len(fields) == 7 and fields[5].isdecimal() and len(fields[4]) == 64:
                archive, name, version, arch, digest, size, sets = fields
                entries.append(
                    Package(archive, name, version, arch, digest, int(size), tuple(sets.split(",")))
                )
            else:
                raise InputError(f"{path}, line {number}: not a locked package", hint=RENEW)
        return cls(wants, tuple(entries))

    @classmethod
    def load_all(cls) -> Lock:
        """Both locks as one, with the digest of packages.lock."""
        packages = cls.load()
        kernels = cls.load(paths.guest_images() / KERNELS)
        return cls(packages.wants, (*packages.entries, *kernels.entries))

    def packages(self, *sets: str) -> tuple[Package, ...]:
        """The packages of these sets, by name; InputError if the lock has no such set."""
        for name in sets:
            if not any(name in package.sets for package in self.entries):
                raise InputError(f"the locks have no set {name!r}", hint=RENEW)
        return tuple(package for package in self.entries if set(sets) & set(package.sets))

    def render(self) -> str:
        """The text of the lock, the same for the same packages."""
        head = f"# Made by `{RENEW}` from packages.toml.\nwants {self.wants}\n"
        head += "# archive name version arch sha256 size sets\n"
        rows = (
            f"{p.archive} {p.name} {p.version} {p.arch} {p.sha256} {p.size} {','.join(p.sets)}\n"
            for p in self.entries
        )
        return head + "".join(rows)

    def save(self, path: Path | None = None) -> None:
        """Write the lock (default: packages.lock), whole or not at all."""
        path = path or paths.guest_images() / PACKAGES
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(self.render())
        fresh.replace(path)


INCOMPLETE = "incomplete"
"""The role of an image in kernels.lock that the archive has only a part of."""


def kernel_set(role: str, release: str) -> str:
    """The name of a set of kernels.lock: "headers-6.1.0-56-amd64"."""
    return f"{role}-{release}"


def load_wanted(path: Path | None = None) -> tuple[Wanted, ...]:
    """The sets of packages.toml (default: ours), in its order."""
    with _packages_toml(path) as document:
        archives = _archives(document)
        return tuple(
            Wanted(
                name=name,
                archive=archives[entry["archive"]],
                packages=tuple(entry["packages"]),
                drop=dict(entry.get("drop", {})),
                leave_out=tuple(entry.get("leave-out", ())),
            )
            for name, entry in document["sets"].items()
        )


def load_archives(path: Path | None = None) -> dict[str, Archive]:
    """The archives of packages.toml (default: ours) by name."""
    with _packages_toml(path) as document:
        return _archives(document)


def load_wanted_kernels(path: Path | None = None) -> WantedKernels:
    """The archives whose kernels are wanted, of packages.toml (default: ours)."""
    with _packages_toml(path) as document:
        archives, asked = _archives(document), document["kernels"]
        return WantedKernels(
            tuple(archives[name] for name in asked["archives"]), frozenset(asked["libraries"])
        )


@contextlib.contextmanager
def _packages_toml(path: Path | None) -> Iterator[dict[str, Any]]:
    path = path or paths.guest_images() / "packages.toml"
    try:
        yield tomllib.loads(path.read_text())
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not a list of packages: {error!r}") from error


def _archives(document: Mapping[str, Any]) -> dict[str, Archive]:
    return {
        name: Archive(
            name,
            tuple(entry["suites"]),
            entry.get("target", ""),
            source=entry.get("source", False),
            packaging=entry.get("packaging", False),
        )
        for name, entry in document["archives"].items()
    }


def digest_of_wanted(wanted: Iterable[Wanted]) -> str:
    """Changes with whatever could change the lock, not with comments or reasons."""
    content: list[Any] = [
        [want.name, want.archive.suites, want.archive.target, want.packages, sorted(want.drop)]
        for want in wanted
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def digest_of_kernels(wanted: WantedKernels) -> str:
    """The same for kernels.lock."""
    archives = [[archive.name, archive.suites, archive.target] for archive in wanted.archives]
    content = json.dumps([archives, sorted(wanted.libraries)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def lock_digest(lock: Lock, sets: Iterable[str]) -> str:
    """SHA-256 over name and content of every package of these sets: a part of cache keys."""
    rows = (f"{p.name} {p.version} {p.sha256}\n" for p in lock.packages(*sets))
    return hashlib.sha256("".join(rows).encode()).hexdigest()
