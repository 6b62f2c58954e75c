"""fio in a domU: it finds what is not what it wrote."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from ends import DISK, Ends

from emu.errors import NotHeld
from emu.images import fio as fio_program
from emu.images.context import BuildContext
from emu.xen import fio

SPOIL = """
for n in $(seq 60); do
    [ -e /run/enough ] && break
    dd if=/dev/zero of=$1 bs=1M count=8 oflag=direct 2>/dev/null
done
"""


def test_fio_notices_what_another_wrote(ends: Ends) -> None:
    ends.load("back")
    ends.connect(order=2)
    domu, lun = ends.channel("front"), ends.stack.lun
    fio.install(domu, fio_program.build(BuildContext(ends.cache)))
    done = fio.verify(domu, DISK, mib=8)
    assert done.write_bytes == done.read_bytes == 8 << 20
    with ThreadPoolExecutor() as pool:
        spoiler = pool.submit(
            ends.stack.host.dom0.run, ["sh", "-c", SPOIL, "sh", lun.device], timeout=300
        )
        with pytest.raises(NotHeld, match="fio ended with status"):
            fio.verify(domu, DISK, mib=8, seed=2)
        ends.stack.host.dom0.run("touch /run/enough", timeout=20)
        spoiler.result()
