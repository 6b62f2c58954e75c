"""The layout of requests: a 32-bit domU's ring under a 64-bit dom0.

The front end is the series', built with the structures of a 32-bit kernel, whose 64-bit numbers
lie on multiples of four (front-ends/protocol-32.patch).
"""

from __future__ import annotations

import pytest
from back_ends import front_end
from raw_requests import SIZE_32, UNSUPPORTED, Answer, RawFrontEnd, unknown_32

from emu.rig import RigHost, RigLun
from emu.rig.verifying import Load

FULL = (
    "dd if=/dev/urandom of=/tmp/full bs=44k count=4 2>/dev/null; "
    "dd if=/tmp/full of=/dev/xvda bs=44k seek=64 oflag=direct 2>/dev/null; "
    "dd if=/dev/xvda bs=44k skip=64 count=4 iflag=direct 2>/dev/null | cmp - /tmp/full 2>&1 "
    "&& echo same"
)
DISCARD = "blkdiscard -o 1048576 -l 65536 /dev/xvda"


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_32_bit_ring_carries_every_kind_of_request(host: RigHost, lun: RigLun, named: bool) -> None:
    """A front end that names no protocol has this one."""
    domu = host.create(
        front=front_end(host, "protocol-32"), front_parameters={"name_protocol": int(named)}
    )
    host.log.mark()
    domu.attach(lun)
    protocol = domu.domain.front_tree().get("protocol")
    assert (protocol is not None) == named, f"the front end names the protocol {protocol}"
    assert host.log.lines("protocol 2 ("), "the back end does not speak the 32-bit protocol"
    since = lun.mark()
    written = domu.fill()
    assert domu.sum() == written, "the disk does not hold what was written"
    # As many segments as a request has room for without indirect ones.
    copied = domu.run(FULL).strip()
    assert copied == "same", f"requests of 11 segments wrote or read other data: {copied}"
    domu.run(DISCARD)
    asked = {request.operation for request in lun.requests(since)}
    assert asked == {"read", "write", "flush", "unmap"}, f"the LUN was asked for {asked} alone"
    unmapped = [
        (each.lba, each.blocks) for each in lun.requests(since) if each.operation == "unmap"
    ]
    assert unmapped == [(2048, 128)], f"a discard of blocks 2048–2175 came as {unmapped}"
    with domu.verifying_io(load=Load(outstanding=64, size=8192)) as io:
        io.await_answers(300)


def test_32_bit_request_of_an_unknown_operation_is_refused(host: RigHost, lun: RigLun) -> None:
    """Its answer has its id, which stands elsewhere than in the 64-bit layout."""
    domu = host.create(disk=lun, front=front_end(host, "raw-requests", "protocol-32"))
    front = RawFrontEnd(domu, size=SIZE_32)
    requests = [unknown_32(operation) for operation in (4, 7, 99, 255)]
    front.send(*requests)
    front.wait()
    want = [Answer(each.id, each.answered_as, UNSUPPORTED) for each in requests]
    came = sorted(front.answers(), key=lambda answer: answer.id)
    assert came == want, f"unknown operations were answered as {came}, not {want}"
    written = domu.fill()
    assert domu.sum() == written, "the disk does not work after unknown operations"
