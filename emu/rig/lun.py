"""A LUN as tests see it: what it is, and what its server can be made to do."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError, NotHeld
from emu.images.filesystem import check_ext4
from emu.xen import lunsession, lunsize
from emu.xen.lun import MIB, SECTOR
from emu.xen.lunserver import Kinds, LunServer
from emu.xen.lunsession import REPLACEMENT_TIMEOUT, Session

_READ_WITHIN = 120.0
"""Seconds to read all of a LUN."""
HELD_WITHIN = 30.0
"""Seconds in which what a test sends has reached the LUN, or what it released has left it."""


@dataclass(frozen=True)
class RigLun(LunServer):
    """A LUN and the dom0 that serves it. The verbs are those of `LunServer`."""

    @property
    def name(self) -> str:
        """Its name, which is also that of its file in dom0."""
        return self.lun.name

    @property
    def device(self) -> str:
        """Its device in dom0, by path."""
        return self.lun.device

    @property
    def block(self) -> str:
        """The name of its device in dom0's sysfs."""
        return self.lun.block

    @contextlib.contextmanager
    def held(self, kinds: Kinds = "all", after: int = 0) -> Iterator[None]:
        """Requests that come while the body runs are held, and released when it ends."""
        self.hold(kinds, after)
        try:
            yield
        finally:
            self.release()

    def drop(self, first: int = 0, blocks: int | None = None, times: int = 0) -> None:
        """Acknowledge writes and do not do them, until `clear`: a LUN that loses data."""
        self.tear(0, first, blocks, answer="good", times=times)

    def resize(self, mib: int) -> None:
        """Make it larger or smaller, in use or not; returns when dom0's disk has `mib` MiB.

        What lies beyond the new end is lost. Raises InputError for a size that no LUN has.
        """
        lunsize.resize(self.dom0, self.lun, mib * MIB)

    def allocated(self) -> int:
        """How many bytes dom0 has allocated for it: of a thin LUN, what was written and not
        discarded since."""
        return lunsize.allocated(self.dom0, self.lun)

    def start_of(self, partition: int) -> int:
        """The byte that a partition begins at, as dom0 has it."""
        path = f"/sys/class/block/{self.block}{partition}/start"
        return int(self.dom0.run(["cat", path], timeout=20).text) * SECTOR

    def session(self) -> Session:
        """Its iSCSI session as dom0's kernel shows it."""
        return lunsession.session(self.dom0, self.lun)

    def unreachable(
        self, seconds: float | None = None, *, replacement_timeout: int = REPLACEMENT_TIMEOUT
    ) -> contextlib.AbstractContextManager[None]:
        """Lose its iSCSI session now; returns when dom0 has noticed.

        It is back after `seconds` (of dom0's clock), or with `reachable`; as a context it is back
        when the context has ended. Meanwhile dom0's requests wait; after `replacement_timeout`
        seconds they fail, and so does each that comes until the session is back. Those that the LUN
        had not answered are sent again then. All sessions of the LUN are lost, those of another
        host, too.

        Raises InputError while it holds requests: LIO ends a session only when those that it has
        are answered (iscsit_close_connection() waits for each).
        """
        if seconds is not None and seconds <= 0:
            raise InputError(f"a session can't be lost for {seconds} s")
        if replacement_timeout < 0:
            raise InputError(f"requests can't wait {replacement_timeout} s for a session")
        if self.holds():
            raise InputError(
                f"LUN {self.name} holds requests: its session ends only when they are answered",
                hint="release() them first",
            )
        lunsession.lose(self.dom0, self.lun, replacement_timeout, seconds)
        return self._back(seconds)

    @contextlib.contextmanager
    def _back(self, seconds: float | None) -> Iterator[None]:
        try:
            yield
        finally:
            if seconds is None:
                self.reachable()
            else:
                lunsession.await_back(self.dom0, self.lun, seconds)

    def reachable(self) -> None:
        """End what `unreachable` began; returns when the session is back and its disk works."""
        lunsession.restore(self.dom0, self.lun)

    def fsck(self) -> None:
        """Check the ext4 file system on it, which was unmounted (`e2fsck -fn`, on this machine).

        Raises NotHeld with what e2fsck finds.
        """
        packed = self.dom0.run(["gzip", "-1", "-c", self.lun.file], timeout=_READ_WITHIN).stdout
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / self.name
            image.write_bytes(gzip.decompress(packed))
            check_ext4(image, f"LUN {self.name}")

    def await_outstanding(self, number: int, timeout: float = HELD_WITHIN) -> None:
        """Wait until at least `number` requests are at the LUN; 0: until none is.

        `timeout` in seconds before scaling. Raises NotHeld with those that are.
        """
        now = self.wait_outstanding(number, None if number else 0, timeout)
        if now < number or (now and not number):
            there = self.outstanding()
            raise NotHeld(
                f"{now} requests are outstanding at LUN {self.name} after {timeout:.0f} s, "
                f"{number or 'none'} were to be",
                lines=[
                    f"{each.operation} of {each.blocks} blocks from {each.lba} on, "
                    f"{each.state}, {each.age:.1f} s old"
                    for each in there[:8]
                ],
            )
