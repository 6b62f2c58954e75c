"""What Linux' console driver leaks in a domU that is resumed as another domain.

xencons_resume() of Linux 6.1 (drivers/tty/hvc/hvc_xen.c) gives the second console's old event
channel back with evtchn_put(), but xen_irq_resume() has forgotten by then which interrupt that
belonged to: it is never freed, and evtchn_put() reports that in a WARNING.

Counted over five restores of a domU without a disk and without a front end, PV and PVH, with
the kernels debian-6.1, lab-6.1 and debian-6.12, and traced with `slub_debug=U`, which names what
allocated it: so much each time, and nothing else.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from emu.images.kconfig import read_config
from emu.images.kernels import Kernel
from emu.xen.memory import INTERRUPT, NO_HANDLER, SLAB

_LEAKED = {
    f"{SLAB}kmalloc-512": 1,  # struct irq_desc
    f"{SLAB}kmalloc-192": 1,  # struct irq_info of drivers/xen/events
    f"{SLAB}kmalloc-32": 3,
    f"{SLAB}kmalloc-8": 2,  # its number as text, for sysfs
    f"{SLAB}kernfs_node_cache": 8,
    f"{SLAB}proc_dir_entry": 8,
    # kernfs numbers its nodes in turn and looks them up in a tree with 64 of them in a leaf.
    # These eight keep a leaf of their own for good, or two, where other nodes come and go.
    f"{SLAB}radix_tree_node": 2,
}
_LEAKED_OFFSTACK = {f"{SLAB}kmalloc-8": 3}
"""The descriptor's CPU masks, where they are not part of it (CONFIG_CPUMASK_OFFSTACK)."""
_LEAKED_LISTED = {INTERRUPT + NO_HANDLER: 1}
"""Linux 6.12 leaks the descriptor too, but not in /proc/interrupts."""


@functools.cache
def leaked_by_console(kernel: Kernel) -> Mapping[str, int]:
    """What a guest with this kernel has more after each resume, by `emu.xen.memory`'s names."""
    leaked = Counter(_LEAKED)
    if read_config(kernel.config.read_text()).get("CONFIG_CPUMASK_OFFSTACK") == "y":
        leaked.update(_LEAKED_OFFSTACK)
    if kernel.release.startswith("6.1."):
        leaked.update(_LEAKED_LISTED)
    return MappingProxyType(leaked)
