"""What is on the disk: images and their packages, the cache, the package lock."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.images import kbuild, kernel_specs
from emu.images.cache import Cache, EntryInfo
from emu.images.context import BuildContext
from emu.images.fetch import renew
from emu.images.guests import GuestImages, get_guests
from emu.images.kernels import Kernel, get_kernel
from emu.images.manifest import usage
from emu.images.modules import Driver, End
from emu.images.packages import Lock, Package, load_wanted, lock_digest
from emu.images.replaced import described
from emu.images.tree_kernel import TreeWish
from emu.machine import rundir
from emu.stack.drivers import checked_driver

GUEST_SETS = ("xen", "dom0", "domu")
_MAIN = re.compile(r"xen-hypervisor-|linux-source-|linux-image-\d")
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
    sources = {spec.name: _sources(spec, lock) for spec in kernel_specs.specs().values()}
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
            for candidate, (kind, wanted, these) in sources.items():
                if kind == entry.kind and all(inputs.get(k) == v for k, v in wanted.items()):
                    name, sets = candidate, these
            names[entry.key] = name
        else:
            name = names.get(str(inputs.get("kernel")), "")
        if entry.kind == "guests" and inputs.get("packages") == lock_digest(lock, GUEST_SETS):
            sets = GUEST_SETS
        if entry.kind == "drivers" and name in sources:
            source = kernel_specs.spec(name).packages["source"]
            if inputs.get("source") == lock_digest(lock, [source]):
                sets = (source,)
        if entry.kind == "checkpoint":
            packages = next((i.packages for i in found if i.entry.key == inputs.get("guests")), ())
        else:
            packages = lock.packages(*sets) if sets else ()
        found.append(Image(entry.kind, name, bool(packages), packages, entry))
    return found


def _sources(spec: kernel_specs.Spec, lock: Lock) -> tuple[str, Mapping[str, Any], tuple[str, ...]]:
    """(kind, the inputs of a cache entry that name its source, package sets)."""
    sets: tuple[str, ...]
    if spec.flavour == "debian":
        sets = (spec.packages["image"], spec.packages["headers"])
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
    """Everything that a run of one kernel needs, on this machine."""

    kernel: Kernel
    guests: GuestImages
    drivers: Mapping[End, Driver]


def build(choice: str | TreeWish, context: BuildContext) -> Built:
    """Find or build everything that a run needs; the kernel as `Wish.dom0_choice`.

    Raises InputError as `get_kernel`, `get_guests` and `checked_driver`.
    """
    made = get_kernel(choice, context)
    guests = get_guests(made, context)
    ends: tuple[End, ...] = ("front", "back")
    drivers = {end: checked_driver(end, "patched", made, context) for end in ends}
    return Built(made, guests, drivers)


@dataclass(frozen=True)
class LockChange:
    """A package whose version changed; None where it was added or removed."""

    archive: str
    name: str
    before: str | None
    after: str | None
    sets: tuple[str, ...]


def renew_lock(context: BuildContext, path: Path | None = None) -> list[LockChange]:
    """Lock what the mirrors have now, by default in our packages.lock; returns the changes."""
    path = path or paths.guest_images() / "packages.lock"
    try:
        before = Lock.load(path)
    except InputError:  # missing or unreadable: it is replaced
        before = Lock("", ())
    with context.progress.stage("asking the mirrors"):
        after = renew(load_wanted(), context)
    after.save(path)
    return changes(before, after)


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
