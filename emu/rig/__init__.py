"""What tests and scripts use: a host, its domUs and its LUNs.

`RigHost` and `RigDomu` join the verbs of `emu.xen` to what the rig knows of drivers and
checkpoints. The fixtures of `emu.pytestplugin.fixtures` are these; a script makes its own:

    context = BuildContext(Cache())
    with running(prepare(Wish(), context), context) as stack:
        host = RigHost(stack, context)
        domu = host.create(disk=host.lun, ring_pages=16)
        domu.save_and_restore(max_ring_pages=2)
        assert domu.ring(host.lun).pages == 2
"""

from __future__ import annotations

from emu.rig.disks import FIRST_DISK
from emu.rig.domu import RigDomu
from emu.rig.host import RigHost
from emu.rig.ledger import Ledger
from emu.rig.lun import RigLun

__all__ = ["FIRST_DISK", "Ledger", "RigDomu", "RigHost", "RigLun"]
