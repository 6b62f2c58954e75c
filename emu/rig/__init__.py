"""What tests and scripts talk to: a host, its domU and its LUN, as a person speaks of them.

`RigHost` and `RigDomu` join the verbs of `emu.xen` to what the rig knows of drivers and
checkpoints. The fixtures of `emu.pytestplugin.fixtures` are these; a script makes its own:

    with running(prepare(Wish(), cache, progress), cache, progress) as stack:
        host = RigHost(stack, cache)
        domu = host.create(disk=host.lun, ring_pages=16)
        domu.save_and_restore(max_ring_pages=2)
        assert domu.ring(host.lun).pages == 2
"""

from __future__ import annotations

from emu.rig.domu import RigDomu
from emu.rig.host import RigHost
from emu.rig.ledger import Ledger
from emu.rig.lun import RigLun

__all__ = ["Ledger", "RigDomu", "RigHost", "RigLun"]
