"""What a set needs, by the archive's index; and what takes the place of a package that is gone.

A replacement is what the set would resolve to now or, where that is of another series, the newest
of the same: Linux 6.1.x for 6.1.y, the same upstream release of a source package. All packages of
a kernel move to one version, and those of one source package move together. Everything else stays
as it is locked, unless what replaces the others does not work with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from debian.debian_support import Version

from emu.errors import InputError, RigError
from emu.images.apt import PACKAGING, SOURCE, Apt, Record
from emu.images.packages import RENEW, Lock, Package, Wanted

_KERNEL = re.compile(r"linux-(image|headers|kbuild|source|base|binary|modules|compiler)-")
"""Packages of a kernel; not linux-libc-dev, which user space is compiled against."""
_NUMBERED = r"\d[^-]*(-\d[^-]*)?"
"""A kernel release within a name: 6.1.0-56, 7.3.4+deb13."""
_SERIES = re.compile(r"(?:\d+:)?(\d+\.\d+)")

Apts = Callable[[str], Apt]
"""apt for an archive of packages.toml by name, its lists up to date."""


def closure(
    want: Wanted,
    solution: Iterable[Record],
    start: Iterable[str] | None = None,
    have: Collection[str] = (),
) -> list[Record]:
    """Those of apt's solution that the set's packages need, not counting what it drops.

    A dropped package takes what only it needs with it. Raises InputError for a drop that
    drops nothing: its reason is no longer true. With `start` it begins at these instead of at
    all of the set's; `have` has names that need no look at, and then any drop is right.
    """
    by_name = {record.name: record for record in solution}
    providers: dict[str, list[str]] = {}
    for record in by_name.values():
        for name in (record.name, *record.provides):
            providers.setdefault(name, []).append(record.name)
    kept: dict[str, Record] = {}
    idle = set(want.drop) if start is None else set()
    waiting = [name.partition("=")[0] for name in want.packages] if start is None else [*start]
    while waiting:
        name = waiting.pop()
        if dropped := {pattern for pattern in want.drop if fnmatchcase(name, pattern)}:
            idle -= dropped
        elif name not in kept and name not in have:
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


def no_longer_there(
    package: Package,
    apt: Apt,
    why: str = "",
    hint: str = f"`{RENEW}` locks what it has now",
    lines: Iterable[str] = (),
) -> InputError:
    """The error about a locked package that the archive has not got."""
    now = apt.versions(package.name)
    has = f"it has {', '.join(now[:3])}" if now else "it has none of that name"
    what = f"the mirror no longer has {package.name} {package.version}: {has}{why}"
    return InputError(what, hint=hint, lines=lines)


def replacements(
    gone: Sequence[Package],
    asked: Collection[str],
    lock: Lock,
    wanted: Iterable[Wanted],
    apts: Apts,
) -> dict[str, tuple[Package, ...]]:
    """What the sets with `gone` packages consist of now, by the names of the sets.

    `asked` are the sets that they are missed in. A set that is none of `wanted` is of a kernel
    that is named by its version, which nothing takes the place of. Raises InputError for a
    package that nothing takes the place of.
    """
    sets = {want.name: want for want in wanted}
    for package in gone:
        by_version = set(asked) & set(package.sets) - sets.keys()
        if _is_kernel(package) and by_version:
            raise no_longer_there(package, apts(package.archive))
    moving = _together(gone, lock, apts)
    found: dict[str, tuple[Package, ...]] = {}
    versions = dict.fromkeys((p.archive, p.version) for p in moving if _is_kernel(p))
    for archive, version in versions:
        kernels = {
            p for p in moving if _is_kernel(p) and (p.archive, p.version) == (archive, version)
        }
        found |= _kernels(kernels, moving, lock, sets, apts(archive))
    found |= _sources([p for p in moving if _is_source(p)], sets, apts)
    for name in dict.fromkeys(name for package in moving for name in package.sets):
        before = lock.packages(name)
        if name in found:
            continue
        if name in sets:
            found[name] = _Move(sets[name], before, moving, apts(sets[name].archive.name)).renewed()
        elif not all(map(_is_kernel, moving.intersection(before))):
            found[name] = _by_the_same_names(before, moving, apts)
    return found


def _is_kernel(package: Package) -> bool:
    return not _is_source(package) and _KERNEL.match(package.name) is not None


def _is_source(package: Package) -> bool:
    return package.arch in (SOURCE, PACKAGING)


def _together(gone: Sequence[Package], lock: Lock, apts: Apts) -> frozenset[Package]:
    """These, and all that must have the same version as one of them."""
    moving = set(gone)
    for package in gone:
        if _is_kernel(package):
            moving |= {
                other
                for other in lock.entries
                if _is_kernel(other)
                and (other.archive, other.version) == (package.archive, package.version)
            }
        elif _is_source(package):
            moving |= {
                other
                for other in lock.entries
                if _is_source(other)
                and (other.name, other.version) == (package.name, package.version)
            }
        else:
            beside = [p for p in lock.entries if p.archive == package.archive and not _is_kernel(p)]
            records = apts(package.archive).every_record(p.name for p in beside)
            source_of = {record.name: record.source for record in records}
            source = source_of.get(package.name)
            moving |= {p for p in beside if source and source_of.get(p.name) == source}
    return frozenset(moving)


def _kernels(
    kernels: Collection[Package],
    moving: frozenset[Package],
    lock: Lock,
    sets: Mapping[str, Wanted],
    apt: Apt,
) -> dict[str, tuple[Package, ...]]:
    """All sets with packages of one kernel, at a version that all of them have.

    The one that they resolve to now, if it is of the same series; else the newest.
    """
    names = dict.fromkeys(
        name for package in sorted(kernels, key=_by_name) for name in package.sets
    )
    affected = [sets[name] for name in names if name in sets]
    main = min(kernels, key=lambda p: (not p.name.startswith("linux-image-"), p.name))
    there = [
        record
        for prefix in ("linux-image-", "linux-headers-", "linux-source-")
        for record in apt.every_record(apt.names(prefix))
    ]
    series = _series(main.version)
    versions = {r.version for r in there if _series(r.version) == series} - {main.version}
    now = {version for want in affected for version in _resolved(want, apt)}
    for version in sorted(versions, key=lambda one: (one in now, Version(one)), reverse=True):
        offered = {record.name for record in there if record.version == version}
        found = {}
        for want in affected:
            move = _Move(want, lock.packages(want.name), moving, apt, version, offered)
            if (roots := move.roots()) is None or (content := move.content(roots)) is None:
                break
            found[want.name] = content
        else:
            return found
    parts = " with headers and source" if len(affected) > 1 else ""
    raise no_longer_there(
        main,
        apt,
        f", and no whole Linux {series}.x{parts}",
        f"name another kernel; or change packages.toml, and `{RENEW}`",
    )


def _resolved(want: Wanted, apt: Apt) -> set[str]:
    """The versions of the kernels that a set would be locked with."""
    try:
        return {version for name, version in apt.solve(want.packages) if _KERNEL.match(name)}
    except RigError:
        return set()


def _sources(
    moving: Sequence[Package], sets: Mapping[str, Wanted], apts: Apts
) -> dict[str, tuple[Package, ...]]:
    """Source packages, the same version in all archives that are asked for them."""
    found: dict[str, tuple[Package, ...]] = {}
    for name, before in dict.fromkeys((p.name, p.version) for p in moving):
        mine = [p for p in moving if (p.name, p.version) == (name, before)]
        offered = [
            {
                r.version
                for r in apts(p.archive).every_record([name])
                if _series(r.version) == _series(before)
            }
            for p in mine
        ]
        common = sorted(set.intersection(*offered), key=Version)
        if not common:
            raise no_longer_there(
                mine[0], apts(mine[0].archive), f", and no {name} {_series(before)}"
            )
        for package in mine:
            (record,) = apts(package.archive).records([(name, common[-1])])
            content = (locked(package.archive, record),)
            found |= {one: content for one in package.sets if one in sets}
    return found


def _by_the_same_names(
    before: Sequence[Package], moving: Collection[Package], apts: Apts
) -> tuple[Package, ...]:
    """A set with the newest versions of those packages that move, except for kernels."""
    found = []
    for package in before:
        if package in moving and not _is_kernel(package):
            apt = apts(package.archive)
            records = apt.every_record([package.name])
            if not records:
                raise no_longer_there(package, apt)
            newest = max(records, key=lambda record: Version(record.version))
            found.append(locked(package.archive, newest))
        else:
            found.append(package)
    return tuple(found)


@dataclass
class _Move:
    """One set, some of whose packages move; those of a kernel to `version`."""

    want: Wanted
    before: Sequence[Package]
    moving: Collection[Package]
    apt: Apt
    version: str = ""
    offered: Collection[str] = field(default_factory=frozenset)
    """Names of kernel packages that the archive has in `version`."""

    def roots(self) -> list[str] | None:
        """What to ask apt for, kernels by version; None where there is none of that version."""
        found = []
        for name in self.want.packages:
            if not _KERNEL.match(name):
                found.append(name)
            elif (versioned := self._of_version(name)) is not None:
                found.append(f"{versioned}={self.version}")
            else:
                return None
        return found

    def _of_version(self, name: str) -> str | None:
        """A root, or the package that it stands for where it has moved to another series."""
        if name in self.offered:
            return name
        kind, _, flavour = name.removeprefix("linux-").partition("-")
        if re.match(r"\d", flavour):  # named with its release: that one is meant
            return None
        pattern = re.compile(rf"linux-{kind}-{_NUMBERED}-{flavour}")
        named = [one for one in self.offered if pattern.fullmatch(one)]
        return max(named, key=len, default=None)

    def renewed(self) -> tuple[Package, ...]:
        """The packages of the set, of whose kernel nothing moves: see `content`."""
        content = self.content()
        assert content is not None
        return content

    def content(self, roots: Sequence[str] = ()) -> tuple[Package, ...] | None:
        """The packages of the set; None if apt has none of its kernel in one version.

        Raises InputError for a package that nothing takes the place of.
        """
        kept = [package for package in self.before if package not in self.moving]
        known = {(r.name, r.version) for r in self.apt.every_record(p.name for p in kept)}
        pins = [f"{p.name}={p.version}" for p in kept if (p.name, p.version) in known]
        there = {pin.partition("=")[0] for pin in pins}
        asked = [root for root in roots or self.want.packages if root not in there]
        try:
            solution = self.apt.solve([*asked, *pins])
        except RigError as error:
            # What takes the place of the others does not work with what is locked.
            if more := self._with(self.before, roots):
                return more.content(roots)
            if self.version:
                return None
            raise no_longer_there(self._lost(), self.apt, lines=error.lines) from error
        records = self.apt.records(solution)
        names = {record.name for record in records}
        gone = [p for p in self.before if p not in kept and not (roots and _is_kernel(p))]
        lost_roots = [p for p in gone if p.name in self.want.packages and p.name not in names]
        if lost_roots:
            raise no_longer_there(lost_roots[0], self.apt)
        unpinned = [p for p in kept if (p.name, p.version) not in known]
        if any(p.name not in names for p in gone) and (more := self._with(unpinned, roots)):
            # It is gone for good; those which the archive has not got either may have needed it.
            return more.content(roots)
        start = (
            [root.partition("=")[0] for root in (roots or self.want.packages)]
            if not kept
            else [
                *(root.partition("=")[0] for root in roots if "=" in root),
                *(p.name for p in gone if p.name in names),
            ]
        )
        fresh = closure(self.want, records, start, {package.name for package in kept})
        made = [*kept, *(locked(self.want.archive.name, record) for record in fresh)]
        if self.version and any(_is_kernel(p) and p.version != self.version for p in made):
            return None
        return tuple(sorted(made, key=_by_name))

    def _with(self, packages: Iterable[Package], roots: Sequence[str]) -> _Move | None:
        """The same with these moving, too, a kernel only with all of it; None for nothing new."""
        more = [p for p in packages if p not in self.moving and (roots or not _is_kernel(p))]
        return replace(self, moving=[*self.moving, *more]) if more else None

    def _lost(self) -> Package:
        """The package to name where nothing can be installed."""
        there = {record.name for record in self.apt.every_record(p.name for p in self.before)}
        moving = [package for package in self.before if package in self.moving]
        return next((package for package in moving if package.name not in there), moving[0])


def _by_name(package: Package) -> tuple[str, str]:
    return package.name, package.version


def _series(version: str) -> str:
    """ "6.1" of "6.1.192-2", the whole version where it has no second number."""
    match = _SERIES.match(version)
    return match[1] if match else version


def locked(archive: str, record: Record, sets: Iterable[str] = ()) -> Package:
    """A record as a line of the lock."""
    r = record
    return Package(archive, r.name, r.version, r.arch, r.sha256, r.size, tuple(sorted(sets)))
