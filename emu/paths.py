"""Where things lie on the developer's machine."""

from __future__ import annotations

import os
from pathlib import Path

from emu.errors import InputError

_GUEST_IMAGES, _QEMU_PATCHES = "guest-images", "qemu-patches"

PACKAGE = Path(__file__).resolve().parent
"""Where this package lies: in a checkout, or where a wheel was installed."""


def installed() -> bool:
    """Whether this package came out of a wheel, which has data beside the modules."""
    return (PACKAGE / _GUEST_IMAGES).is_dir()


def checkout(need: str = "this") -> Path:
    """The top of the source tree this package runs from; `need` says what is looked for there.

    Raises InputError for an installed package, which has neither tests nor anything to change.
    """
    if installed():
        raise InputError(
            f"{need} needs a checkout of emu-xen-block: this is the package in {PACKAGE}",
            hint="run it in a clone, after `make setup` there",
        )
    return PACKAGE.parent


def guest_images() -> Path:
    """The folder of everything that goes into a guest; read-only for an installed package."""
    return _data(_GUEST_IMAGES)


def qemu_patches() -> Path:
    """The folder of our patches for QEMU, and of the small guests that show its faults."""
    return _data(_QEMU_PATCHES)


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/emu-xen-block`, or `~/.cache/emu-xen-block` (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "emu-xen-block"


def runs_root() -> Path:
    """Where each run keeps its directory of logs and state (mode 0700), inside the cache root."""
    return cache_root() / "runs"


def _data(name: str) -> Path:
    # pyproject.toml has the wheel carry both folders in the package; a checkout has them beside it.
    return (PACKAGE if installed() else PACKAGE.parent) / name
