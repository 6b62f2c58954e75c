"""The Debian packages that go into the guests: wanted and locked (emu.images.fetch gets them).

`guest-images/packages.toml` lists what is wanted: named sets of packages, where from, and
what is dropped of all they depend on. `guest-images/packages.lock` has the outcome, a
line a package with version and SHA-256. Only what matches the lock is ever used.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
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
        """Read a lock (default: ours); InputError names the line that makes no sense."""
        path = path or paths.guest_images() / "packages.lock"
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

    def packages(self, *sets: str) -> tuple[Package, ...]:
        """The packages of these sets, by name; InputError if the lock has no such set."""
        for name in sets:
            if not any(name in package.sets for package in self.entries):
                raise InputError(f"packages.lock has no set {name!r}", hint=RENEW)
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
        """Write the lock (default: ours), whole or not at all."""
        path = path or paths.guest_images() / "packages.lock"
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(self.render())
        fresh.replace(path)


def load_wanted(path: Path | None = None) -> tuple[Wanted, ...]:
    """The sets of packages.toml (default: ours), in its order."""
    path = path or paths.guest_images() / "packages.toml"
    try:
        document = tomllib.loads(path.read_text())
        archives = {
            name: Archive(
                name,
                tuple(entry["suites"]),
                entry.get("target", ""),
                source=entry.get("source", False),
                packaging=entry.get("packaging", False),
            )
            for name, entry in document["archives"].items()
        }
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
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not a list of packages: {error!r}") from error


def digest_of_wanted(wanted: Iterable[Wanted]) -> str:
    """Changes with whatever could change the lock, not with comments or reasons."""
    content: list[Any] = [
        [want.name, want.archive.suites, want.archive.target, want.packages, sorted(want.drop)]
        for want in wanted
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def lock_digest(lock: Lock, sets: Iterable[str]) -> str:
    """SHA-256 over name and content of every package of these sets: a part of cache keys."""
    rows = (f"{p.name} {p.version} {p.sha256}\n" for p in lock.packages(*sets))
    return hashlib.sha256("".join(rows).encode()).hexdigest()
