"""What every build needs: the cache, a progress, the locked packages."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emu.images import replaced
from emu.images.cache import Cache
from emu.images.lockholder import Touching
from emu.images.manifest import JSON
from emu.images.packages import Lock, Package, lock_digest
from emu.images.patched import PatchedDrivers
from emu.progress import Progress


@dataclass
class _Asked:
    """The lock in use, once it is known, and what was asked of it."""

    lock: Lock | None = None
    said: set[replaced.Change] = field(default_factory=replaced.said)
    """The changes of versions that a note has named (`replaced.changes`)."""
    records: list[dict[Package, None]] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)
    """The lines of `note_once`."""


@dataclass(frozen=True)
class BuildContext:
    """Where builds are kept, where progress is reported, and which packages they may use.

    `pinned` replaces the locks of guest-images/, which are read at their first use. A build
    whose progress is reported shows those who wait for it that it is not stuck. `patched` is
    what drivers of that name are. With `insist` nothing takes the place of a locked package
    (by default as the environment asks, emu.images.replaced).
    """

    cache: Cache
    progress: Progress = field(default_factory=Progress)
    pinned: Lock | None = None
    patched: PatchedDrivers = field(default_factory=PatchedDrivers)
    insist: bool = field(default_factory=replaced.insisted)
    _asked: _Asked = field(default_factory=_Asked, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.progress, Touching):
            object.__setattr__(self, "progress", Touching(self.progress))

    @property
    def lock(self) -> Lock:
        """The packages in use: the locked ones, or what was taken in place of them.

        When such a one is asked for the first time, the progress has a note of it. Raises
        InputError for a lock that can't be read.
        """
        if self._asked.lock is None:
            found = replaced.lock_in_use(self.cache, self._locked, insist=self.insist)
            self._asked.lock = replaced.LockInUse(found.wants, found.entries, self._note)
        return self._asked.lock

    def look_again(self) -> None:
        """Read again what was taken in place of locked packages."""
        self._asked.lock = None

    def replace(self, contents: Mapping[str, Sequence[Package]]) -> None:
        """Take these packages for sets, by name, and remember it for the locked ones."""
        locked = self._locked
        replaced.remember(
            self.cache,
            {lock_digest(locked, [name]): packages for name, packages in contents.items()},
        )
        self.look_again()

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[Package, None]]:
        """The packages that are asked for while it lasts: what is made consists of them."""
        record: dict[Package, None] = {}
        self._asked.records.append(record)
        try:
            yield record
        finally:
            self._asked.records = [one for one in self._asked.records if one is not record]

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

    def note_once(self, line: str) -> None:
        """A note of the progress, unless this context has had it."""
        if line not in self._asked.noted:
            self._asked.noted.add(line)
            self.progress.note(line)

    @property
    def _locked(self) -> Lock:
        return self.pinned or _lock()

    def _note(self, packages: tuple[Package, ...]) -> None:
        for record in self._asked.records:
            record.update(dict.fromkeys(packages))
        changes = replaced.changes(packages)
        fresh = [changes[change] for change in changes.keys() - self._asked.said]
        if fresh:
            self._asked.said.update(changes)
            self.progress.note(replaced.note(replaced.described(itertools.chain(*fresh))))


@functools.lru_cache(maxsize=1)
def _lock() -> Lock:
    return Lock.load_all()
