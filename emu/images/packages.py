"""The Debian packages that go into the guests: wanted, locked, fetched.

`guest-images/packages.toml` says what is wanted: named sets of packages, where from, and
what is dropped of all they depend on. `guest-images/packages.lock` has the outcome, a
line a package with version and SHA-256. Only what matches the lock is ever used.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.images.apt import PACKAGING, SOURCE, Apt, Archive, Mirrors, Record, find_mirrors
from emu.images.cache import Cache
from emu.images.manifest import sha256_of
from emu.progress import Progress

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

RENEW = "emu images lock"
_DEBS = "debs"


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
    """

    archive: str
    name: str
    version: str
    arch: str
    sha256: str
    size: int
    sets: tuple[str, ...]

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
    """What packages.toml came to; `wants` is the digest of what it said then."""

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
        raise InputError(f"{path} does not say what is wanted: {error!r}") from error


def digest_of_wanted(wanted: Iterable[Wanted]) -> str:
    """Changes with whatever could change the lock, not with comments or reasons."""
    said: list[Any] = [
        [want.name, want.archive.suites, want.archive.target, want.packages, sorted(want.drop)]
        for want in wanted
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def lock_digest(lock: Lock, sets: Iterable[str]) -> str:
    """SHA-256 over name and content of every package of these sets: a part of cache keys."""
    rows = (f"{p.name} {p.version} {p.sha256}\n" for p in lock.packages(*sets))
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def fetch(
    lock: Lock,
    sets: Iterable[str],
    cache: Cache,
    progress: Progress,
    *,
    wanted: Iterable[Wanted] | None = None,
    mirrors: Mirrors | None = None,
) -> dict[Package, Path]:
    """The file of every package of these sets, each verified against the lock just now.

    Nothing is asked of the network if the cache has them all. Raises InputError when the
    mirror has a locked version no more, RigError when no mirror answers.
    """
    packages = lock.packages(*sets)
    store = cache.store(_DEBS)
    missing = _missing(packages, store, progress)
    if missing:
        archives = {want.archive.name: want.archive for want in wanted or load_wanted()}
        with cache.lock(_DEBS, "it fetches packages", progress):
            store.mkdir(exist_ok=True)  # a prune may have come between
            missing = _missing(packages, store, progress)
            cache.need(sum(package.size for package in missing), "fetching packages")
            for name in sorted({package.archive for package in missing}):
                apt = Apt(cache.store("apt") / name, archives[name], mirrors or find_mirrors())
                these = [package for package in missing if package.archive == name]
                _download(these, apt, store, cache, progress)
    return {package: store / package.file_name for package in packages}


def renew(
    wanted: Iterable[Wanted], cache: Cache, progress: Progress, *, mirrors: Mirrors | None = None
) -> Lock:
    """Lock what the mirrors have now; the caller saves it."""
    wanted = tuple(wanted)
    mirrors = mirrors or find_mirrors()
    found: dict[tuple[str, Record], set[str]] = {}
    with cache.lock(_DEBS, "it fetches packages", progress):
        for archive in dict.fromkeys(want.archive for want in wanted):
            apt = Apt(cache.store("apt") / archive.name, archive, mirrors)
            apt.update(progress)
            for want in wanted:
                if want.archive != archive:
                    continue
                progress.tick(f"what {want.name} depends on")
                for record in closure(want, apt.records(apt.solve(want.packages))):
                    found.setdefault((archive.name, record), set()).add(want.name)
    entries = [
        Package(name, r.name, r.version, r.arch, r.sha256, r.size, tuple(sorted(sets)))
        for (name, r), sets in found.items()
    ]
    entries.sort(key=lambda package: (package.archive, package.name, package.version))
    return Lock(digest_of_wanted(wanted), tuple(entries))


def closure(want: Wanted, solution: Iterable[Record]) -> list[Record]:
    """Those of apt's solution that the set's packages need, not counting what it drops.

    A dropped package takes what only it needs with it. Raises InputError for a drop that
    drops nothing: its reason is no longer true.
    """
    by_name = {record.name: record for record in solution}
    providers: dict[str, list[str]] = {}
    for record in by_name.values():
        for name in (record.name, *record.provides):
            providers.setdefault(name, []).append(record.name)
    kept: dict[str, Record] = {}
    idle = set(want.drop)
    waiting = [name.partition("=")[0] for name in want.packages]
    while waiting:
        name = waiting.pop()
        if dropped := {pattern for pattern in want.drop if fnmatchcase(name, pattern)}:
            idle -= dropped
        elif name not in kept:
            kept[name] = by_name[name]
            for choices in by_name[name].depends:
                waiting += [one for choice in choices for one in providers.get(choice, ())]
    if idle:
        raise InputError(
            f"packages.toml: set {want.name} drops {', '.join(sorted(idle))}, "
            "but nothing it keeps needs that",
            hint="take it out of [sets.<name>.drop]",
        )
    return [kept[name] for name in sorted(kept)]


def _missing(packages: Iterable[Package], store: Path, progress: Progress) -> list[Package]:
    """Those whose .deb is not there; one that is not the locked one is thrown away."""
    missing = []
    for package in packages:
        path = store / package.file_name
        try:
            right = path.stat().st_size == package.size and sha256_of(path) == package.sha256
        except FileNotFoundError:
            missing.append(package)
            continue
        if not right:
            progress.note(f"cache: {package.file_name} is not what the lock says: fetching again")
            path.unlink(missing_ok=True)
            missing.append(package)
    return missing


def _download(
    packages: list[Package], apt: Apt, store: Path, cache: Cache, progress: Progress
) -> None:
    with progress.stage(f"fetching {len(packages)} packages"):
        apt.update(progress)
        _check_offered(packages, apt)
        total = sum(package.size for package in packages)
        with cache.scratch(_DEBS) as scratch:
            apt.download(
                [(package.name, package.version) for package in packages],
                scratch,
                lambda done: progress.tick("packages (bytes)", done, total),
            )
            for package in packages:
                path = package.downloaded(scratch)
                if path is None or sha256_of(path) != package.sha256:
                    raise _other(package)
                path.replace(store / package.file_name)


def _check_offered(packages: list[Package], apt: Apt) -> None:
    """Raise before anything is downloaded if the mirror's index lacks a locked package."""
    keys = [(package.name, package.version) for package in packages]
    offered = {(record.name, record.version): record for record in apt.records(keys)}
    for package in packages:
        record = offered.get((package.name, package.version))
        if record is None:
            now = apt.versions(package.name)
            has = f"it has {', '.join(now[:3])}" if now else "it has none of that name"
            raise InputError(
                f"the mirror no longer has {package.name} {package.version}: {has}",
                hint=f"`{RENEW}` locks what it has now",
            )
        if record.sha256 != package.sha256:
            raise _other(package)


def _other(package: Package) -> InputError:
    return InputError(
        f"{package.name} {package.version} from the mirror is not the locked one: "
        "its SHA-256 differs",
        hint=f"`{RENEW}` locks what the mirror has now, if you trust it",
    )
