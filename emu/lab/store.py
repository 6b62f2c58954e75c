"""What is on the disk: images and their packages, the cache, the package lock."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from emu import paths
from emu.errors import InputError
from emu.images import kbuild, kernel_specs, xens
from emu.images.cache import Cache, EntryInfo
from emu.images.context import BuildContext
from emu.images.fetch import renew
from emu.images.guests import GuestImages, get_guests, package_sets
from emu.images.kernel_lock import renew_kernels
from emu.images.kernels import Kernel
from emu.images.manifest import usage
from emu.images.modules import PATCHED, STOCK, Driver, End
from emu.images.packaged_kernel import kernel_sets
from emu.images.packages import (
    KERNELS,
    PACKAGES,
    Lock,
    Package,
    load_wanted,
    load_wanted_kernels,
    lock_digest,
)
from emu.images.patched import PatchedDrivers
from emu.images.replaced import described
from emu.images.tree_kernel import TreeWish
from emu.machine import rundir
from emu.stack.drivers import checked_driver
from emu.stack.stack import check_kernels, kernels_of
from emu.stack.wish import Wish

_MAIN = re.compile(r"xen-hypervisor-|linux-source-|linux-image-\d")
_Source: TypeAlias = "tuple[str, Mapping[str, Any], tuple[str, ...]]"
_KINDS = ("kernel-debian", "kernel-lab", "kernel-tree", "guests", "drivers", "checkpoint")


@dataclass(frozen=True)
class Image:
    """A cache entry that guests boot, load or start from.

    `name` is that of its kernel in kernels.toml ("" when no current kernel has that source), and
    what `uname -r` prints of a tree's,
    `packages` the locked packages it was built from; empty, and `locked` false, when the
    current lock has other versions of them.
    """

    kind: str
    name: str
    locked: bool
    packages: tuple[Package, ...]
    entry: EntryInfo

    @property
    def main_package(self) -> str:
        """The most telling package with its version, the number of the others, and what of all
        is not what the lock has.
        """
        named = [p for p in self.packages if _MAIN.match(p.name)] or list(self.packages)
        if not named:
            return ""
        more = f" and {len(self.packages) - 1} more" if len(self.packages) > 1 else ""
        others = described(self.packages)
        mark = f"; {'; '.join(others)}" if others else ""
        return f"{named[0].name} {named[0].version}{more}{mark}"


def images(cache: Cache, lock: Lock) -> list[Image]:
    """The kernels, guests, drivers and checkpoints that the cache holds, kernels first."""
    found: list[Image] = []
    sources = _all_sources(lock)
    guests = {lock_digest(lock, sets): sets for sets in map(package_sets, xens.XENS.values())}
    entries = [entry for entry in cache.entries() if entry.kind in _KINDS]
    names: dict[str, str] = {}  # of a kernel's, then of a guest image's entry
    for entry in sorted(entries, key=lambda entry: _KINDS.index(entry.kind)):
        inputs, name = entry.inputs, ""
        sets: tuple[str, ...] = ()
        if entry.kind == "kernel-tree":
            with contextlib.suppress(OSError):
                name = (entry.path / "release").read_text().strip()
            names[entry.key] = name
        elif entry.kind.startswith("kernel-"):
            name, sets = _kernel_of(entry.kind, inputs, sources)
            names[entry.key] = name
        else:
            name = names.get(str(inputs.get("kernel")), "")
        if entry.kind == "guests":
            sets = guests.get(str(inputs.get("packages")), ())
        if entry.kind == "drivers" and name in sources:
            source = kernel_specs.spec(name).packages.get("source")
            if source and inputs.get("source") == lock_digest(lock, [source]):
                sets = (source,)
        if entry.kind == "checkpoint":
            packages = next((i.packages for i in found if i.entry.key == inputs.get("guests")), ())
        else:
            packages = lock.packages(*sets) if sets else ()
        found.append(Image(entry.kind, name, bool(packages), packages, entry))
    return found


def made_kernels(cache: Cache, lock: Lock) -> set[str]:
    """The names of the kernels that the cache holds, unpacked or built, from this lock."""
    sources = _all_sources(lock)
    return {
        _kernel_of(kind, inputs, sources)[0]
        for kind in ("kernel-debian", "kernel-lab")
        for inputs in cache.inputs(kind)
    }


def _kernel_of(
    kind: str, inputs: Mapping[str, Any], sources: Mapping[str, _Source]
) -> tuple[str, tuple[str, ...]]:
    """The kernel that an entry of the cache is, and its sets; "" for one of another lock."""
    for name, (kind_of_it, wanted, sets) in sources.items():
        if kind_of_it == kind and all(inputs.get(key) == text for key, text in wanted.items()):
            return name, sets
    return "", ()


def _all_sources(lock: Lock) -> dict[str, _Source]:
    locked = {name for package in lock.entries for name in package.sets}
    return {
        spec.name: _sources(spec, lock)
        for spec in kernel_specs.every_spec()
        if locked.issuperset(spec.packages.values())
    }


def _sources(spec: kernel_specs.Spec, lock: Lock) -> _Source:
    """(kind, the inputs of a cache entry that name its source, package sets)."""
    sets: tuple[str, ...]
    if spec.packaged:
        sets = tuple(kernel_sets(spec))
        return "kernel-debian", {"packages": lock_digest(lock, sets)}, sets
    sets = (spec.packages["source"],)
    patches = [patch for folder in spec.patches for patch in kbuild.series(folder)]
    inputs = {
        "source": lock_digest(lock, sets),
        "config": list(kbuild.digest(spec.config)),
        "patches": list(kbuild.digest(patches)),
    }
    return "kernel-lab", inputs, sets


def images_as_json(found: Iterable[Image]) -> list[dict[str, Any]]:
    """As JSON; size in bytes, times in Unix seconds."""
    return [
        {
            "kind": image.kind,
            "kernel": image.name,
            "from_this_lock": image.locked,
            "packages": [f"{p.name} {p.version} {p.sha256}" for p in image.packages],
            "instead_of_locked": described(image.packages),
            **_entry_as_json(image.entry),
        }
        for image in found
    ]


@dataclass(frozen=True)
class Built:
    """Everything that a run needs, on this machine."""

    kernel: Kernel
    domu_kernel: Kernel
    guests: GuestImages
    drivers: Mapping[End, Driver]


def build(wish: Wish, context: BuildContext) -> Built:
    """Find or build everything that a run needs.

    Of a kernel that the series is not for, the drivers are its stock ones, if no others are asked
    for. Raises InputError for one that can't be dom0's, and as `get_kernel`, `get_guests` and
    `checked_driver`.
    """
    check_kernels(wish)
    made, domu_made = kernels_of(wish, context)
    guests = get_guests(xens.find(wish.xen), made, context, domu_kernel=domu_made)

    def driver(end: End, choice: str | TreeWish, kernel: Kernel) -> Driver:
        asked = context.patched != PatchedDrivers()
        known = isinstance(choice, TreeWish) or kernel_specs.spec(choice).driver_patches
        return checked_driver(end, PATCHED if asked or known else STOCK, kernel, context)

    drivers: dict[End, Driver] = {
        "front": driver("front", wish.domu_choice, domu_made),
        "back": driver("back", wish.dom0_choice, made),
    }
    return Built(made, domu_made, guests, drivers)


@dataclass(frozen=True)
class LockChange:
    """A package whose version changed; None where it was added or removed."""

    archive: str
    name: str
    before: str | None
    after: str | None
    sets: tuple[str, ...]


def renew_lock(context: BuildContext, folder: Path | None = None) -> list[LockChange]:
    """Lock what the mirrors have now, packages and kernels, by default in guest-images/; returns
    the changes.

    Raises InputError where ours is not to be changed: in an installed package.
    """
    folder = folder or paths.checkout("emu images lock") / "guest-images"
    with context.progress.stage("asking the mirrors"):
        renewed = {
            PACKAGES: renew(load_wanted(), context),
            KERNELS: renew_kernels(load_wanted_kernels(), context),
        }
    found = []
    for name, after in renewed.items():
        try:
            before = Lock.load(folder / name)
        except InputError:  # missing or unreadable: it is replaced
            before = Lock("", ())
        after.save(folder / name)
        found += changes(before, after)
    return found


def changes(before: Lock, after: Lock) -> list[LockChange]:
    """The differences between two locks, by archive and name."""

    def versions(lock: Lock) -> dict[tuple[str, str, str], Package]:
        # A set may hold two versions of a name from one archive, with different hashes.
        return {(p.archive, p.name, f"{p.version} {p.sha256}"): p for p in lock.entries}

    old, new = versions(before), versions(after)
    gone: dict[tuple[str, str], list[Package]] = {}
    for key in sorted(old.keys() - new.keys()):
        gone.setdefault(key[:2], []).append(old[key])
    found = []
    for key in sorted(new.keys() - old.keys()):
        fresh = new[key]
        was = gone.get(key[:2], [])
        replaced = was.pop(0).version if was else None
        found.append(LockChange(fresh.archive, fresh.name, replaced, fresh.version, fresh.sets))
    for left in gone.values():
        found += [LockChange(p.archive, p.name, p.version, None, p.sets) for p in left]
    return sorted(found, key=lambda change: (change.archive, change.name))


def runs(cache: Cache) -> list[EntryInfo]:
    """The directories of runs: logs, and the state of running ones."""
    root = cache.root / "runs"
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        made = path.stat().st_mtime
        found.append(EntryInfo("runs", path.name, path, {}, usage(path), made, made))
    return found


def contents_as_json(found: Iterable[EntryInfo]) -> list[dict[str, Any]]:
    """As JSON; sizes in bytes on the disk, times in Unix seconds."""
    return [{"kind": entry.kind, **_entry_as_json(entry)} for entry in found]


def _entry_as_json(entry: EntryInfo) -> dict[str, Any]:
    return {
        "key": entry.key,
        "path": str(entry.path),
        "bytes": entry.size,
        "created": round(entry.created),
        "last_used": round(entry.last_used),
    }


@dataclass(frozen=True)
class Pruned:
    """What was removed, and the bytes of the disk that were freed."""

    entries: tuple[EntryInfo, ...]
    runs: tuple[Path, ...]
    freed: int


def prune(cache: Cache, *, unused_days: float = 0, kinds: set[str] | None = None) -> Pruned:
    """Remove what is not in use and was not used for `unused_days` (0: all of it).

    With `kinds` only those; "runs" are the logs of runs that have ended. Raises
    InputError for a kind the cache does not have.
    """
    known = {entry.kind for entry in cache.entries()} | {"runs", *_KINDS}
    if unknown := sorted((kinds or set()) - known):
        raise InputError(
            f"the cache has no kind {unknown[0]!r}", hint=f"there are: {', '.join(sorted(known))}"
        )
    before = {run.path: run.size for run in runs(cache)}
    logs: list[Path] = []
    if kinds is None or "runs" in kinds:
        keep = 0 if unused_days <= 0 else rundir.KEEP_LOGS
        logs = rundir.sweep(cache.root / "runs", keep)
    entries = cache.prune(unused_days=unused_days, kinds=kinds)
    freed = sum(entry.size for entry in entries) + sum(before.get(path, 0) for path in logs)
    return Pruned(tuple(entries), tuple(logs), freed)
