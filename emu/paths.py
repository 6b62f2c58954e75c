"""Where things lie on the developer's machine."""

from __future__ import annotations

import os
from pathlib import Path


def checkout() -> Path:
    """The top of the source tree this package runs from."""
    return Path(__file__).resolve().parent.parent


def guest_images() -> Path:
    """The folder of everything that goes into a guest."""
    return checkout() / "guest-images"


def qemu_patches() -> Path:
    """The folder of our patches for QEMU, and of the small guests that show its faults."""
    return checkout() / "qemu-patches"


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/emu-xen-block`, or `~/.cache/emu-xen-block` (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "emu-xen-block"


def runs_root() -> Path:
    """Where each run keeps its directory of logs and state (mode 0700), inside the cache root."""
    return cache_root() / "runs"
