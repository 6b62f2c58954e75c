"""A LUN as tests see it: what it is, and what its server can be made to do."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emu.errors import NotHeld
from emu.images.filesystem import check_ext4
from emu.xen.lunserver import Kinds, LunServer

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
