"""What every build needs: the cache, a progress, the locked packages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emu.images.cache import Cache
from emu.images.lockholder import Touching
from emu.images.manifest import JSON
from emu.images.packages import Lock
from emu.images.patched import PatchedDrivers
from emu.progress import Progress


@dataclass(frozen=True)
class BuildContext:
    """Where builds are kept, where progress is reported, and which packages they may use.

    `pinned` replaces the lock of guest-images/, which is read at its first use. A build
    whose progress is reported shows those who wait for it that it is not stuck. `patched` is
    what drivers of that name are.
    """

    cache: Cache
    progress: Progress = field(default_factory=Progress)
    pinned: Lock | None = None
    patched: PatchedDrivers = field(default_factory=PatchedDrivers)

    def __post_init__(self) -> None:
        if not isinstance(self.progress, Touching):
            object.__setattr__(self, "progress", Touching(self.progress))

    @property
    def lock(self) -> Lock:
        """The locked packages. Raises InputError for a lock that can't be read."""
        return self.pinned or _lock()

    def entry(
        self,
        kind: str,
        inputs: Mapping[str, JSON],
        build: Callable[[Path], None],
        *,
        room: int = 0,
    ) -> Path:
        """An entry of the cache, found or built now: see `Cache.entry`."""
        return self.cache.entry(kind, inputs, build, self.progress, room=room)


@functools.lru_cache(maxsize=1)
def _lock() -> Lock:
    return Lock.load()
