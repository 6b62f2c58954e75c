"""Fetching the locked packages, and locking what the mirrors have now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from emu.errors import InputError, RigError
from emu.images import replaced
from emu.images.apt import Apt, Archive, Record
from emu.images.context import BuildContext
from emu.images.manifest import sha256_of
from emu.images.mirrors import Mirrors, find_mirrors
from emu.images.packages import (
    RENEW,
    Lock,
    Package,
    Wanted,
    digest_of_wanted,
    load_archives,
    load_wanted,
)
from emu.images.resolve import Apts, closure, locked, no_longer_there, replacements
from emu.progress import Progress

_DEBS = "debs"


def fetch(
    sets: Iterable[str],
    context: BuildContext,
    *,
    wanted: Iterable[Wanted] | None = None,
    mirrors: Mirrors | None = None,
) -> dict[Package, Path]:
    """The file of every package of these sets, each verified just now against the lock in use.

    Nothing is asked of the network if the cache has them all. Raises PackagesReplaced when the
    archive has replaced one, and what is there now will be used instead; InputError when there is
    no such, or the context insists on the lock; RigError when no mirror answers.
    """
    sets = tuple(sets)
    packages = context.lock.packages(*sets)
    store = context.cache.store(_DEBS)
    missing = _missing(packages, store, context.progress)
    if missing:
        known = load_archives() if wanted is None else {w.archive.name: w.archive for w in wanted}
        wanted = tuple(wanted or load_wanted())
        with context.cache.lock(_DEBS, "fetches packages", context.progress):
            context.look_again()
            if Lock.packages(context.lock, *sets) != packages:  # by another process meanwhile
                raise _restart(context, sets)
            store.mkdir(exist_ok=True)  # a prune may have come between
            missing = _missing(packages, store, context.progress)
            context.cache.need(sum(package.size for package in missing), "fetching packages")
            with context.progress.stage(f"fetching {len(missing)} packages"):
                apts = _Apts(known, context, mirrors)
                apts.update(missing)
                if gone := _not_offered(missing, apts):
                    _replace(gone, sets, wanted, apts, context)
                for name in sorted({package.archive for package in missing}):
                    these = [package for package in missing if package.archive == name]
                    _download(these, apts(name), store, context)
            if context.insist:
                replaced.forget(context.cache, context.lock, sets)
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
    entries = [locked(name, record, sets) for (name, record), sets in found.items()]
    entries.sort(key=lambda package: (package.archive, package.name, package.version))
    return Lock(digest_of_wanted(wanted), tuple(entries))


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


class _Apts:
    """apt for each archive, its lists brought up to date when it is first asked for."""

    def __init__(
        self, archives: Mapping[str, Archive], context: BuildContext, mirrors: Mirrors | None
    ) -> None:
        self._archives, self._context = archives, context
        self._mirrors = mirrors or find_mirrors()
        self._made: dict[str, Apt] = {}

    def __call__(self, name: str) -> Apt:
        if name not in self._made:
            place = self._context.cache.store("apt") / name
            apt = Apt(place, self._archives[name], self._mirrors)
            apt.update(self._context.progress)
            self._made[name] = apt
        return self._made[name]

    def update(self, missing: Sequence[Package]) -> None:
        """Ask for the archives of these packages; the error says that they are missing."""
        for package in missing:
            try:
                self(package.archive)
            except RigError as error:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise RigError(
                    f"{package.name} {package.version}{more} are not in the cache, and can't be "
                    f"fetched: {error.message}",
                    hint=error.hint,
                    lines=error.lines,
                ) from error


def _not_offered(packages: Iterable[Package], apts: Apts) -> list[Package]:
    """Those that the indexes lack. Raises InputError for one with another content."""
    packages, gone = tuple(packages), []
    for name in sorted({package.archive for package in packages}):
        these = {(p.name, p.version): p for p in packages if p.archive == name}
        offered = {(record.name, record.version): record for record in apts(name).records(these)}
        for key, package in these.items():
            if key not in offered:
                gone.append(package)
            elif offered[key].sha256 != package.sha256:
                raise _other(package)
    return gone


def _replace(
    gone: Sequence[Package],
    sets: Sequence[str],
    wanted: Sequence[Wanted],
    apts: Apts,
    context: BuildContext,
) -> NoReturn:
    """Choose and remember what takes the place of packages that are gone, and say so."""
    if context.insist:
        insisting = f"without {replaced.INSIST_OPTION} a run takes what is in its place"
        hint = f"`{RENEW}` locks what it has now; {insisting}"
        raise no_longer_there(gone[0], apts(gone[0].archive), hint=hint)
    context.progress.tick("the archive has replaced some: looking what there is instead")
    lock = Lock(context.lock.wants, context.lock.entries)  # to look at it is not to use it
    contents = replacements(gone, sets, lock, wanted, apts)
    context.replace(contents)
    raise _restart(context, sets)


def _restart(context: BuildContext, sets: Iterable[str]) -> replaced.PackagesReplaced:
    lines = replaced.described(Lock.packages(context.lock, *sets))  # its next use prints them
    return replaced.PackagesReplaced(
        replaced.note(lines), hint="the same command goes on with these"
    )


def _download(packages: list[Package], apt: Apt, store: Path, context: BuildContext) -> None:
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


def _other(package: Package) -> InputError:
    return InputError(
        f"{package.name} {package.version} from the mirror is not the locked one: "
        "its SHA-256 differs",
        hint=f"`{RENEW}` locks what the mirror has now, if you trust it",
    )
