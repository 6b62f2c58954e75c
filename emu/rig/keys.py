"""What a back end offers in xenstore, changed by hand before a front end reads it."""

from __future__ import annotations

from typing import Literal

from emu.rig.domu import RigDomu
from emu.rig.lun import RigLun

Keys = Literal["order", "pages", "both", "none"]
"""Which keys say how large a ring may be: `max-ring-page-order`, `max-ring-pages`, Xen's
public header io/blkif.h."""


def offer(domu: RigDomu, disk: RigLun | str, keys: Keys, pages: int) -> None:
    """Let the back end of a disk that is not connected offer rings of `pages` in `keys` alone."""
    number = {"max-ring-page-order": pages.bit_length() - 1, "max-ring-pages": pages}
    wanted = {"order": "max-ring-page-order", "pages": "max-ring-pages"}
    root = domu.domain.back_path(domu.disk(disk))
    for key, value in number.items():
        path = f"{root}/{key}"
        if keys == "both" or wanted.get(keys) == key:
            words = ["xenstore-write", path, str(value)]
        else:
            words = ["sh", "-c", 'xenstore-rm "$1" || true', "sh", path]
        domu.host.dom0.run(words, timeout=20)
