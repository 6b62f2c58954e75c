"""Packages in place of locked ones that the archive has replaced: which, remembered, said.

An archive keeps a version as long as its suite has it; a lock outlives that. So a run may take
what the archive has now (emu.images.resolve finds it) instead of what is gone. The choice is kept
in the cache and holds until the lock changes for it: cache keys are made of what is really used,
and nothing is asked of the network to know that. `--locked` (`$EMU_LOCKED`) insists on the lock.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from emu.errors import RigError
from emu.images.cache import Cache
from emu.images.packages import RENEW, Lock, Package, lock_digest

INSIST = "EMU_LOCKED"
"""The environment's variable that carries --locked to the processes we start."""
INSIST_OPTION = "--locked"
NOTHING = "nothing"
"""`Package.instead_of` of what is needed besides, without a counterpart in the lock."""
_STORE = "replaced"
_NAMED = 3
"""So many replaced packages are named in the line about them."""
_TIMES = 20
"""So often a build may find that more has been replaced; each time it is something else."""
_ABI = re.compile(r"-\d[^-]*(-\d[^-]*)?(?=-|$)")

P = ParamSpec("P")
T = TypeVar("T")

Contents = Mapping[str, Sequence[Package]]
"""The packages of sets, by the `lock_digest` of what the lock has for the set."""

Change = tuple[str, str]
"""A locked version, and the one in place of it."""

_settling: ContextVar[set[Change] | None] = ContextVar("settling", default=None)
"""What notes have said since the outermost `settled` build began; None outside of all."""


class PackagesReplaced(RigError):
    """What a build was to use has been replaced: it has to begin again, with other keys.

    `settled` sees to that. Where nothing does, the next command goes on from here.
    """


@dataclass(frozen=True)
class LockInUse(Lock):
    """A lock that calls `asked` with the packages that are asked for."""

    asked: Callable[[tuple[Package, ...]], None] = field(default=lambda _: None, compare=False)

    def packages(self, *sets: str) -> tuple[Package, ...]:
        """As `Lock.packages`."""
        found = super().packages(*sets)
        self.asked(found)
        return found


def insisted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether only locked packages may be used."""
    return environ.get(INSIST, "") not in ("", "0")


def settled(build: Callable[P, T]) -> Callable[P, T]:
    """Begin `build` again when a package that it needs has been replaced meanwhile.

    Of calls within each other the outermost begins again, so that all it makes fits together.
    """

    @functools.wraps(build)
    def again(*arguments: P.args, **options: P.kwargs) -> T:
        if _settling.get() is not None:
            return build(*arguments, **options)
        token = _settling.set(set())
        try:
            for _ in range(_TIMES):
                try:
                    return build(*arguments, **options)
                except PackagesReplaced:
                    continue
            return build(*arguments, **options)
        finally:
            _settling.reset(token)

    return again


def said() -> set[Change]:
    """What notes have said already: a build that begins again does not repeat it."""
    found = _settling.get()
    return set() if found is None else found


def lock_in_use(cache: Cache, locked: Lock | None = None, *, insist: bool | None = None) -> Lock:
    """A lock (default: ours) with what was taken in place of packages that are gone."""
    locked = locked or Lock.load_all()
    if insisted() if insist is None else insist:
        return locked
    return effective(locked, remembered(cache))


def effective(locked: Lock, contents: Contents) -> Lock:
    """The lock, but for the sets that `contents` has."""
    if not contents:
        return locked
    names = dict.fromkeys(name for package in locked.entries for name in package.sets)
    others = {
        name: contents[digest]
        for name in names
        if (digest := lock_digest(locked, [name])) in contents
    }
    if not others:
        return locked
    members: dict[Package, set[str]] = {}
    for name in names:
        mine = locked.packages(name)
        for package in others.get(name, mine):
            plain = replace(package, sets=(), instead_of=_instead_of(package, mine))
            members.setdefault(plain, set()).add(name)
    entries = [replace(package, sets=tuple(sorted(sets))) for package, sets in members.items()]
    entries.sort(key=lambda package: (package.archive, package.name, package.version))
    return Lock(locked.wants, tuple(entries))


def _instead_of(package: Package, locked: Sequence[Package]) -> str:
    if any((package.name, package.sha256) == (one.name, one.sha256) for one in locked):
        return ""
    alike = [one for one in locked if _ABI.sub("-*", one.name) == _ABI.sub("-*", package.name)]
    same = [one for one in alike if one.name == package.name]
    return next((f"{one.name} {one.version}" for one in (*same, *alike)), NOTHING)


def remembered(cache: Cache) -> dict[str, tuple[Package, ...]]:
    """What was chosen before, for any lock; nothing if the file can't be read."""
    if not (cache.root / "store" / _STORE).exists():  # asking does not make it
        return {}
    try:
        kept = json.loads(_file(cache).read_text())
        os.utime(_file(cache))  # in use: `emu cache prune` goes by its time
        return {digest: tuple(map(_read, rows)) for digest, rows in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _read(row: Sequence[Any]) -> Package:
    archive, name, version, arch, digest, size = row
    return Package(str(archive), str(name), str(version), str(arch), str(digest), int(size), ())


def remember(cache: Cache, contents: Contents) -> None:
    """Keep a choice; the caller holds the lock of the packages' store."""
    _write(cache, {**remembered(cache), **contents})


def forget(cache: Cache, locked: Lock, sets: Iterable[str]) -> None:
    """What the lock has for these sets is there after all."""
    before = remembered(cache)
    gone = {lock_digest(locked, [name]) for name in sets}
    if gone & before.keys():
        _write(cache, {digest: rows for digest, rows in before.items() if digest not in gone})


def _write(cache: Cache, contents: Contents) -> None:
    rows = {
        digest: [[p.archive, p.name, p.version, p.arch, p.sha256, p.size] for p in packages]
        for digest, packages in contents.items()
    }
    path = _file(cache)
    with cache.scratch(_STORE) as scratch:
        (scratch / path.name).write_text(json.dumps(rows, indent=0) + "\n")
        (scratch / path.name).replace(path)


def _file(cache: Cache) -> Path:
    return cache.store(_STORE) / "packages.json"


def described(packages: Iterable[Package]) -> list[str]:
    """What was taken instead of what: one line for all packages with the same two versions."""
    lines = []
    for group in changes(packages).values():
        first = min(group, key=lambda p: (not re.match(r"linux-image-\d", p.name), p.name))
        more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
        lines.append(f"{first.name} {first.version} instead of {first.instead_of}{more}")
    return lines


def changes(packages: Iterable[Package]) -> dict[Change, list[Package]]:
    """The packages in place of locked ones, by the locked version and by theirs."""
    groups: dict[Change, list[Package]] = {}
    for package in packages:
        if package.instead_of:
            before = package.instead_of.rpartition(" ")[2]
            groups.setdefault((before, package.version), []).append(package)
    return groups


def note(lines: Sequence[str]) -> str:
    """The one line that a run says about replaced packages, of those that describe them."""
    shown = "; ".join(lines[:_NAMED])
    if len(lines) > _NAMED:
        shown += f"; and {len(lines) - _NAMED} more"
    return (
        f"the archive has replaced locked packages: taking {shown} "
        f"({INSIST_OPTION} insists, `{RENEW}` renews the lock)"
    )
