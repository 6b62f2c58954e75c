"""Fetching the locked packages, and locking what the mirrors have now."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from emu.errors import InputError
from emu.images.apt import Apt, Mirrors, Record, find_mirrors
from emu.images.context import BuildContext
from emu.images.manifest import sha256_of
from emu.images.packages import RENEW, Lock, Package, Wanted, digest_of_wanted, load_wanted
from emu.progress import Progress

_DEBS = "debs"


def fetch(
    sets: Iterable[str],
    context: BuildContext,
    *,
    wanted: Iterable[Wanted] | None = None,
    mirrors: Mirrors | None = None,
) -> dict[Package, Path]:
    """The file of every package of these sets, each verified against the lock just now.

    Nothing is asked of the network if the cache has them all. Raises InputError when the
    mirror has a locked version no more, RigError when no mirror answers.
    """
    packages = context.lock.packages(*sets)
    store = context.cache.store(_DEBS)
    missing = _missing(packages, store, context.progress)
    if missing:
        archives = {want.archive.name: want.archive for want in wanted or load_wanted()}
        with context.cache.lock(_DEBS, "fetches packages", context.progress):
            store.mkdir(exist_ok=True)  # a prune may have come between
            missing = _missing(packages, store, context.progress)
            context.cache.need(sum(package.size for package in missing), "fetching packages")
            for name in sorted({package.archive for package in missing}):
                apt = Apt(
                    context.cache.store("apt") / name, archives[name], mirrors or find_mirrors()
                )
                these = [package for package in missing if package.archive == name]
                _download(these, apt, store, context)
    return {package: store / package.file_name for package in packages}


def renew(
    wanted: Iterable[Wanted], context: BuildContext, *, mirrors: Mirrors | None = None
) -> Lock:
    """Lock what the mirrors have now; the caller saves it."""
    wanted = tuple(wanted)
    mirrors = mirrors or find_mirrors()
    found: dict[tuple[str, Record], set[str]] = {}
    with context.cache.lock(_DEBS, "fetches packages", context.progress):
        for archive in dict.fromkeys(want.archive for want in wanted):
            apt = Apt(context.cache.store("apt") / archive.name, archive, mirrors)
            apt.update(context.progress)
            for want in wanted:
                if want.archive != archive:
                    continue
                context.progress.tick(f"what {want.name} depends on")
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
            progress.note(f"cache: {package.file_name} does not match the lock: fetching again")
            path.unlink(missing_ok=True)
            missing.append(package)
    return missing


def _download(packages: list[Package], apt: Apt, store: Path, context: BuildContext) -> None:
    with context.progress.stage(f"fetching {len(packages)} packages"):
        apt.update(context.progress)
        _check_offered(packages, apt)
        total = sum(package.size for package in packages)
        with context.cache.scratch(_DEBS) as scratch:
            apt.download(
                [(package.name, package.version) for package in packages],
                scratch,
                lambda done: context.progress.tick("packages (bytes)", done, total),
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
