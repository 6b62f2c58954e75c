"""The domU's second console for kernels whose own driver can't connect one: a module of ours.

The command channel into a domU is its second console. In Linux 5.10.y hvc_xen.c fails to connect
any but the first; guest-images/console/emu-console.c says why.
"""

from __future__ import annotations

import re
from pathlib import Path

from emu import paths
from emu.errors import InputError
from emu.images import guest_module
from emu.images.context import BuildContext
from emu.images.kernels import Kernel

MODULE = "emu-console"
_RIGHT_SINCE = (6, 1)
"""The release line whose packages in the archive (6.1.170 and later) connect it themselves."""


def is_needed(kernel: Kernel) -> bool:
    """Whether a kernel connects no second console by itself."""
    found = re.match(r"(\d+)\.(\d+)", kernel.release)
    return found is not None and (int(found[1]), int(found[2])) < _RIGHT_SINCE


def build(kernel: Kernel, context: BuildContext) -> Path:
    """The module for a kernel, from the cache or built.

    Raises InputError for a kernel without headers, and with the compiler's errors.
    """
    if not kernel.devel.exists():
        raise InputError(
            f"{kernel.name} can't be a domU's: it connects no second console, and without its "
            "headers no module can"
        )
    source = paths.guest_images() / "console" / f"{MODULE}.c"
    return guest_module.build(source, kernel, context, f"the console of {kernel.release}")
