"""The LUN server obeys its commands, seen from the guest's side of the ring."""

from __future__ import annotations

import hashlib
import os

import pytest

from emu.errors import NotHeld
from emu.rig import RigDomu, RigHost, RigLun
from emu.xen.requests import Flag

DIRECT_READ = "dd if=/dev/xvda of=/dev/null bs=4k skip={} count=1 iflag=direct"
SERVER = "tcmu-runner --handler-path /usr/lib/emu/tcmu-handlers --tcmu-log-dir /var/log"


@pytest.fixture
def domu(host: RigHost, lun: RigLun) -> RigDomu:
    """A domU with the LUN as its disk."""
    return host.create(disk=lun, ring_pages=1)


def test_request_is_held_and_released(domu: RigDomu, lun: RigLun) -> None:
    write = "dd if=/dev/zero of=/dev/xvda bs=4k seek=9 count=1 oflag=direct"
    mark = lun.mark()
    with lun.held("writes"):
        domu.run(f"({write}; echo $? > /tmp/ended) > /dev/null 2>&1 &")
        lun.await_outstanding(1)
        domu.run(DIRECT_READ.format(9))
        (waiting,) = lun.outstanding()
        held = (waiting.operation, waiting.lba, waiting.state)
        assert held == ("write", 72, "held"), f"the LUN holds {held}"
        ended = domu.run("cat /tmp/ended || true")
        assert not ended, f"a write that the LUN holds ended with status {ended}"
        with pytest.raises(NotHeld, match="1 requests are outstanding at LUN lun0 after 0 s, none"):
            lun.await_outstanding(0, timeout=0.2)
    domu.channel.wait_until("[ -e /tmp/ended ]", "the write to end", 30)
    status = domu.run("cat /tmp/ended").strip()
    assert status == "0", f"a write that the LUN did after all ended with status {status}"
    (written,) = lun.requests(mark).writes
    assert written.held, "the record of a write that was held does not say so"
    assert written.done, "the record of a write that was released says that it was not done"
    took = written.ended - written.started
    assert took > 0.2, f"a write that was held for 0.2 s took {took:.2f} s"


def test_block_gives_an_error(domu: RigDomu, lun: RigLun) -> None:
    lun.fail(first=80, blocks=8, kinds="reads")
    answers = {
        block: domu.channel.run(DIRECT_READ.format(block), timeout=20, check=False)
        for block in (9, 10, 11)
    }
    statuses = [answer.status for answer in answers.values()]
    assert statuses == [0, 1, 0], f"reads before, at and after a bad block: statuses {statuses}"
    said = answers[10].stderr.decode()
    assert "Input/output error" in said, f"the LUN's error came to the reader as {said!r}"
    lun.clear()
    domu.run(DIRECT_READ.format(10))


def test_request_is_delayed(domu: RigDomu, lun: RigLun) -> None:
    mark = lun.mark()
    lun.delay(300, "reads")
    domu.run(DIRECT_READ.format(30))
    delayed = [request for request in lun.requests(mark) if request.lba == 240]
    flags = [request.flags for request in delayed]
    assert flags == [Flag.DELAYED], f"the reads of a delayed block are recorded as {flags}"
    took = delayed[0].ended - delayed[0].started
    assert 0.3 <= took < 1.5, f"a read that is delayed by 0.3 s took {took:.2f} s"


def test_clean_stop_loses_nothing(host: RigHost, domu: RigDomu, lun: RigLun) -> None:
    data = os.urandom(64 * 1024)
    domu.channel.put(data, "/tmp/data")
    lun.hold("writes")
    write = "dd if=/tmp/data of=/dev/xvda bs=64k oflag=direct conv=fsync"
    domu.run(f"({write}; echo $? > /tmp/ended) > /dev/null 2>&1 &")
    lun.await_outstanding(1)
    host.dom0.run("kill $(pidof tcmu-runner)", timeout=20)
    host.dom0.wait_until("! pidof tcmu-runner > /dev/null", "tcmu-runner to end", 20)
    host.dom0.run(f"cd /; {SERVER} < /dev/null > /var/log/again 2>&1 &", timeout=20)
    domu.channel.wait_until("[ -e /tmp/ended ]", "the write to end", 30)
    status = domu.run("cat /tmp/ended").strip()
    assert status == "0", f"a write that the LUN did after all ended with status {status}"
    held = host.dom0.run(f"head -c {len(data)} {lun.lun.file} | sha256sum", timeout=20).text
    assert held.split()[0] == hashlib.sha256(data).hexdigest(), (
        "the LUN's file does not hold the write that was held when its server was stopped"
    )
    # The next server has no hold, and numbers from the beginning.
    left = lun.outstanding()
    assert left == (), f"a new server has requests outstanding: {left}"
    first = lun.requests().requests[0].sequence
    assert first == 1, f"a new server's first request has number {first}"
