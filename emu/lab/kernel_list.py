"""`emu images kernels`: which kernels there are, what each costs, and what of it is here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from debian.debian_support import Version

from emu.images.cache import Cache
from emu.images.catalogue import CLOUD, DEBIAN, PackagedLinux, catalogue
from emu.images.kernel_specs import Spec, every_spec, full_name
from emu.images.packages import Lock, Package
from emu.lab import store

HERE = "built here"
"""In place of a suite."""
_FLAVOURS = (DEBIAN, CLOUD, "lab")
"""In the order in which those of one version are listed."""

Drivers = Literal["series", "no series", "stock only", "modules gone"]
"""What drivers a kernel can have: those of the series; others built for it; only its own; or it
can't be run at all."""


@dataclass(frozen=True)
class ListedKernel:
    """A kernel by its name and all `names` that it goes by.

    `release` is what `uname -r` prints ("" for one that is built here), `version` that of its
    package, `suite` the archive that it is from, `dom0` whether it can be dom0's. `bytes` are
    those of its packages, headers included, `source_bytes` what patched drivers take besides.
    `cached`: "unpacked", "built", "fetched" (its packages alone), or "".
    """

    name: str
    names: tuple[str, ...]
    flavour: str
    release: str
    version: str
    suite: str
    dom0: bool
    drivers: Drivers
    bytes: int
    source_bytes: int
    cached: str


def list_kernels(cache: Cache, lock: Lock, wanted: str = "") -> list[ListedKernel]:
    """The kernels there are, oldest first; with `wanted` those with that word in a name, a
    version or a suite ("6.12", "cloud", "trixie").
    """
    made = store.made_kernels(cache, lock)
    debs = cache.store("debs")
    found = [_listed(one, lock, one.name in made, debs) for one in every_spec()]
    found += [_incomplete(one) for one in catalogue().kernels if not one.complete]
    found.sort(key=lambda one: (Version(one.version), _FLAVOURS.index(one.flavour), one.name))
    word = re.compile(rf"(?<![\w.]){re.escape(wanted)}(?!\w)")
    return [one for one in found if not wanted or any(map(word.search, _words(one)))]


def _words(one: ListedKernel) -> Iterable[str]:
    return (*one.names, one.release, one.version, one.suite)


def _listed(spec: Spec, lock: Lock, made: bool, debs: Path) -> ListedKernel:
    source, packages = _of(spec, lock, "source"), _of(spec, lock, "image", "headers")
    fetched = "fetched" if _are_there(packages or source, debs) else ""
    drivers: Drivers = "series" if spec.driver_patches else "no series"
    if not spec.packaged:
        return ListedKernel(
            spec.name, (spec.name,), spec.flavour, "", source[0].version, HERE, True, drivers,
            0, _bytes(source), "built" if made else fetched,
        )  # fmt: skip
    image = next(one for one in packages if re.match(r"linux-image-\d", one.name))
    release = image.name.removeprefix("linux-image-")
    return ListedKernel(
        spec.name, _names(spec.name, catalogue().find(release)), spec.flavour, release,
        image.version, image.archive, spec.dom0, drivers if spec.buildable else "stock only",
        _bytes(packages), _bytes(source), "unpacked" if made else fetched,
    )  # fmt: skip


def _incomplete(kernel: PackagedLinux) -> ListedKernel:
    name = full_name(kernel.release)
    return ListedKernel(
        name, _names(name, kernel), kernel.flavour, kernel.release, kernel.version,
        kernel.archive, False, "modules gone", 0, 0, "",
    )  # fmt: skip


def _names(name: str, kernel: PackagedLinux | None) -> tuple[str, ...]:
    """A kernel's own name and others that mean it."""
    others = kernel.names if kernel else ()
    return (name, *(other for other in others if other != name and full_name(other) == name))


def _of(spec: Spec, lock: Lock, *roles: str) -> tuple[Package, ...]:
    return lock.packages(*(spec.packages[role] for role in roles if role in spec.packages))


def _bytes(packages: Iterable[Package]) -> int:
    return sum(package.size for package in packages)


def _are_there(packages: Iterable[Package], debs: Path) -> bool:
    def is_there(package: Package) -> bool:
        path = debs / package.file_name
        return path.is_file() and path.stat().st_size == package.size

    return all(map(is_there, packages))


def as_json(found: Iterable[ListedKernel]) -> list[dict[str, Any]]:
    """As JSON; sizes in bytes."""
    return [asdict(one) for one in found]
