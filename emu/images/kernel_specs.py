"""What guest-images/kernels.toml says: the kernels there are, and what any kernel must have."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import paths
from emu.errors import InputError
from emu.images.kconfig import Completion, Requirements

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

DEFAULT_RELEASE = "6.1"
"""The release of a kernel that is named without one."""


@dataclass(frozen=True)
class Spec:
    """One entry of kernels.toml; paths are absolute, in the order they are used."""

    name: str
    flavour: str
    packages: Mapping[str, str]
    config: tuple[Path, ...]
    patches: tuple[Path, ...]
    driver_patches: Path | None

    @property
    def version(self) -> str:
        """The release line of its source ("6.12"): the last part of the name."""
        return self.name.rpartition("-")[2]


def specs() -> dict[str, Spec]:
    """The entries of kernels.toml by name."""
    found = {}
    for name, entry in document()["kernels"].items():
        driver_patches = entry.get("driver-patches")
        found[name] = Spec(
            name,
            entry["flavour"],
            dict(entry["packages"]),
            tuple(paths.guest_images() / fragment for fragment in entry.get("config", ())),
            tuple(paths.guest_images() / folder for folder in entry.get("patches", ())),
            paths.guest_images() / driver_patches if driver_patches else None,
        )
    return found


def full_name(kernel: str) -> str:
    """The name in kernels.toml of a kernel that may be named without its release (then 6.1)."""
    return kernel if re.search(r"-\d+\.\d+$", kernel) else f"{kernel}-{DEFAULT_RELEASE}"


def spec(name: str) -> Spec:
    """One entry of kernels.toml; InputError names those there are."""
    known = specs()
    if name not in known:
        raise InputError(f"there is no kernel {name!r}", hint=f"there are: {', '.join(known)}")
    return known[name]


def requirements() -> Requirements:
    """What kernels.toml asks of every kernel's configuration."""
    asked = document()["requires"]
    return Requirements(tuple(asked["built-in"]), tuple(asked["modules"]), tuple(asked["either"]))


def completion() -> Completion:
    """What kernels.toml adds to somebody's .config, and what it replaces there."""
    asked = document()["completes"]
    return Completion(tuple(asked["built-in"]), tuple(asked["replaced"].items()))


def document() -> dict[str, Any]:
    path = paths.guest_images() / "kernels.toml"
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return document
