"""The kernels there are, and what any kernel must have.

Those that the suite runs on, and those built here, are in guest-images/kernels.toml; any other
Linux of Debian's archives goes by a name of emu.images.catalogue.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.images.catalogue import CLOUD, DEBIAN, PackagedLinux, catalogue, line_of
from emu.images.kconfig import Completion, Requirements
from emu.images.packages import Lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

DEFAULT_RELEASE = "6.1"
"""The release of a kernel that is named without one."""
LISTS = "emu images kernels"
"""The command that lists all kernels."""
STOCK_DRIVERS = "--front stock --back stock"


@dataclass(frozen=True)
class Spec:
    """One kernel; paths are absolute, in the order they are used.

    `packages` are sets of the locks by role: "image", "headers" and "source", of which a packaged
    kernel may have the first alone.
    """

    name: str
    flavour: str
    packages: Mapping[str, str]
    config: tuple[Path, ...]
    patches: tuple[Path, ...]
    driver_patches: Path | None

    @property
    def version(self) -> str:
        """The release line of its source ("6.12"), which its name has."""
        return line_of_name(self.name)

    @property
    def dom0(self) -> bool:
        """Whether it may be dom0's: Debian's cloud kernels lack CONFIG_XEN_DOM0."""
        return self.flavour != CLOUD

    @property
    def packaged(self) -> bool:
        """Whether it is one of Debian's, and not built here."""
        return self.flavour in (DEBIAN, CLOUD)

    @property
    def buildable(self) -> bool:
        """Whether modules can be built for it."""
        return not self.packaged or "headers" in self.packages


def specs() -> dict[str, Spec]:
    """The entries of kernels.toml by name."""
    return dict(_specs(_text()))


@functools.lru_cache(maxsize=1)
def _specs(text: str) -> dict[str, Spec]:
    found, top = {}, paths.guest_images()
    for name, entry in _parsed(text)["kernels"].items():
        driver_patches = entry.get("driver-patches")
        found[name] = Spec(
            name,
            entry["flavour"],
            dict(entry["packages"]),
            tuple(top / fragment for fragment in entry.get("config", ())),
            tuple(top / folder for folder in entry.get("patches", ())),
            top / driver_patches if driver_patches else None,
        )
    return found


def full_name(kernel: str) -> str:
    """The name that lists and reports have for a kernel, of any of its names.

    One that is named without its release is that of 6.1. A name that no kernel has is given back:
    `spec` refuses it.
    """
    name = kernel if re.search(r"(^|-)\d", kernel) else f"{kernel}-{DEFAULT_RELEASE}"
    if name not in specs() and (found := catalogue().find(name)):
        return _name_of(found)
    return name


def line_of_name(name: str) -> str:
    """The release line in a kernel's name: "6.12" of "debian-6.12.107+deb12" and of "lab-6.12"."""
    return line_of(re.sub(r"^\D*", "", name))


def spec(name: str) -> Spec:
    """A kernel by any of its names. Raises InputError, naming the nearest, for an unknown one."""
    known = specs()
    name = full_name(name)
    if name in known:
        return known[name]
    found = catalogue().find(name)
    if found is None:
        nearest = dict.fromkeys(map(full_name, catalogue().nearest(name)))
        near = f"the nearest: {', '.join(nearest)}" if nearest else f"there are: {', '.join(known)}"
        raise InputError(f"there is no kernel {name!r}", hint=f"{near}; `{LISTS}` lists all")
    if not found.complete:
        nearest = dict.fromkeys(map(full_name, catalogue().nearest(name)))
        raise InputError(
            f"{name} can't be run: Debian's archive has its image, but its modules no more",
            hint=f"the nearest are {' and '.join(nearest)}",
        )
    fits = found.buildable and found.line in series_lines()
    return Spec(name, found.flavour, found.packages, (), (), own_series() if fits else None)


def every_spec() -> list[Spec]:
    """All kernels that can be run: those of kernels.toml, then Debian's others, oldest first."""
    named = specs()
    others = dict.fromkeys(_name_of(found) for found in catalogue().kernels if found.complete)
    return [*named.values(), *(spec(name) for name in others if name not in named)]


def own_series() -> Path:
    """The directory of our driver series."""
    return paths.guest_images() / str(document()["packaged"]["driver-patches"])


def series_lines() -> list[str]:
    """The release lines that the driver series is for: those with variants, and of kernels.toml."""
    lines = {one.version for one in specs().values() if one.driver_patches}
    lines |= {path.name for path in own_series().iterdir() if path.is_dir()}
    return sorted(lines, key=lambda line: [int(number) for number in line.split(".")])


def require_dom0(wanted: Spec) -> None:
    """Raise InputError for a kernel that can't be dom0's."""
    if not wanted.dom0:
        raise InputError(
            f"{wanted.name} can't be dom0's: Debian builds its cloud kernels without "
            "CONFIG_XEN_DOM0",
            hint=f"--domu-kernel {wanted.name} has it in the domU",
        )


def require_buildable(wanted: Spec, stock: str = STOCK_DRIVERS) -> None:
    """Raise InputError for a kernel that no driver can be built for.

    `stock` are the options that do without, for the hint.
    """
    if not wanted.buildable:
        found = catalogue().find(wanted.name)
        able = map(full_name, catalogue().neighbours(found, series_lines()) if found else ())
        raise InputError(
            f"no driver can be built for {wanted.name}: Debian's archive has no headers for it any "
            "more",
            hint=f"stock drivers ({stock}), or {' or '.join(able)}",
        )


def require_series(wanted: Spec, stock: str = STOCK_DRIVERS) -> None:
    """Raise InputError for a kernel that the driver series is not for; `stock` as above."""
    require_buildable(wanted, stock)
    if wanted.driver_patches is None:
        lines = series_lines()
        raise InputError(
            f"the driver series is for Linux {', '.join(lines[:-1])} and {lines[-1]}, not for "
            f"{wanted.name}",
            hint=f"stock drivers: {stock}",
        )


def requirements(*, dom0: bool = True) -> Requirements:
    """What kernels.toml asks of a kernel's configuration: for both guests, or for a domU alone."""
    asked = document()["requires" if dom0 else "requires-domu"]
    return Requirements(tuple(asked["built-in"]), tuple(asked["modules"]), tuple(asked["either"]))


def completion() -> Completion:
    """What kernels.toml adds to somebody's .config, and what it replaces there."""
    asked = document()["completes"]
    return Completion(tuple(asked["built-in"]), tuple(asked["replaced"].items()))


def _name_of(found: PackagedLinux) -> str:
    """The name of kernels.toml for a kernel that is there, too; else the catalogue's."""
    return _in_kernels_toml().get((found.release, found.version)) or catalogue().short_name(found)


@functools.lru_cache(maxsize=1)
def _in_kernels_toml() -> dict[tuple[str, str], str]:
    """The packaged kernels of kernels.toml, by release and package version."""
    lock, named = Lock.load(), {}
    for one in specs().values():
        if one.flavour == DEBIAN:
            for package in lock.packages(one.packages["image"]):
                release = package.name.removeprefix("linux-image-")
                named[release, package.version] = one.name
    return named


def document() -> dict[str, Any]:
    """kernels.toml. Raises InputError for one that can't be read."""
    return _parsed(_text())


def _text() -> str:
    path = paths.guest_images() / "kernels.toml"
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=1)
def _parsed(text: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"kernels.toml cannot be read: {error}") from error
    return document
