"""emu-xenstore: its output is that of Xen's own tools; it gives a back end its device."""

from __future__ import annotations

import pytest

from emu.channel.channel import CommandFailed
from emu.rig import RigHost
from emu.xen import xenstore

ODD = {"/emu/odd": "two\twords", "/emu/empty": "", "/emu/long": "x" * 1000}


def test_output_is_that_of_xens_own_tool(host: RigHost) -> None:
    words = [word for pair in ODD.items() for word in pair]
    host.dom0.run(["xenstore-write", *words], timeout=20)
    theirs = host.dom0.run(["xenstore-ls", "-f", "/"], timeout=60).text
    ours = host.xen.xenstore("/").values
    assert ours == xenstore.parse(theirs, "/").values
    assert ODD.items() <= ours.items()
    assert {path: host.xen.read(path) for path in ODD} == ODD


def test_absent_key_reads_as_none(host: RigHost) -> None:
    assert host.xen.read("/emu/nothing") is None
    assert not host.xen.xenstore("/emu/nothing").values


def test_back_end_without_a_device_is_reported(host: RigHost) -> None:
    """libxl learns of it from the hotplug script."""
    host.load_back()
    name = host.stack.domain.name
    with pytest.raises(CommandFailed) as failed:
        host.xen.xl("block-attach", name, "phy:/dev/null,xvdz,w,script=block-emu")
    assert "/dev/null is not a block device" in failed.value.result.stderr.decode()
