"""The LUN of a host, as tests see it."""

from __future__ import annotations

from dataclasses import dataclass

from emu.machine.channel import Channel
from emu.xen.lun import Lun


@dataclass(frozen=True)
class RigLun:
    """A LUN and the dom0 that serves it."""

    lun: Lun
    dom0: Channel

    @property
    def name(self) -> str:
        """Its name, which is also that of its file in dom0."""
        return self.lun.name

    @property
    def device(self) -> str:
        """Its device in dom0, by path."""
        return self.lun.device
