"""fio in a domU: it finds what is not what it wrote."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from emu.errors import NotHeld
from emu.images import fio as fio_program
from emu.images.context import BuildContext
from emu.rig import RigHost, RigLun
from emu.xen import fio

SPOIL = """
for n in $(seq 60); do
    [ -e /run/enough ] && break
    dd if=/dev/zero of=$1 bs=1M count=8 oflag=direct 2>/dev/null
done
"""


def test_fio_finds_what_another_wrote(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)
    disk = domu.disk(lun)
    fio.install(domu.channel, fio_program.build(BuildContext(host.cache)))
    done = fio.verify(domu.channel, disk, mib=8)
    moved = (done.write_bytes, done.read_bytes)
    assert moved == (8 << 20, 8 << 20), f"fio wrote and read {moved} bytes of 8 MiB"
    with ThreadPoolExecutor() as pool:
        spoiler = pool.submit(host.dom0.run, ["sh", "-c", SPOIL, "sh", lun.device], timeout=300)
        with pytest.raises(NotHeld, match="fio ended with status"):
            fio.verify(domu.channel, disk, mib=8, seed=2)
        host.dom0.run("touch /run/enough", timeout=20)
        spoiler.result()
