"""A page that dom0 still uses when its request has been served is unmapped later, and counted."""

from __future__ import annotations

import guest_modules
from driver_checks import READ_ONE, check_holds, shown
from told_answers import Command

from emu.deadline import Deadline, poll
from emu.images.context import BuildContext
from emu.rig import RigHost, RigLun

TAKEN = "/sys/module/page_user/parameters/taken"
LET_GO = "echo 1 > /sys/module/page_user/parameters/let_go"
LOOKS = 1.0
"""Seconds in which dom0 looks at the page many times: after 5 ms, 10 ms, 15 ms, …"""


def test_page_in_use_is_unmapped_later(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    """Its request is answered then, not before; those beside it go on."""
    module = guest_modules.build_with_kprobes("page_user", host.stack.artifacts.kernel, context)
    domu = host.create(disk=lun, ring_pages=2, back_parameters={"feature_persistent": 0})
    written = domu.fill(lun)
    rings_alone = domu.mapped_refs()
    _, back = shown(domu)
    assert back.deferred is not None, "the back end does not show how many unmaps were deferred"
    host.dom0.put(module, "/tmp/page_user.ko")
    host.dom0.run(["insmod", "/tmp/page_user.ko"], timeout=20)

    read = Command(domu, READ_ONE.format(domu.disk(lun)))
    until = Deadline("dom0 to unmap the page of a read", 10)
    taken = poll(
        lambda: host.dom0.run(["cat", TAKEN], timeout=20).text, until, until=lambda on: on == "Y\n"
    )
    assert taken == "Y\n", "dom0 unmaps no page after a read, though grants are not persistent"
    early = poll(
        read.status, Deadline("a read to end too early", LOOKS), until=lambda how: how is not None
    )
    assert early is None, f"the read ended with {early} while dom0 still used its page"
    still = domu.mapped_refs() - rings_alone
    assert len(still) == 1, (
        f"dom0 maps {len(still)} pages of data, not the one that is in use: {sorted(still)}"
    )
    check_holds(domu, written, lun, after="beside a request that waits")
    host.dom0.run(["sh", "-c", LET_GO], timeout=20)
    ended = read.wait()
    assert ended == 0, f"the read ended with {ended} (None: not yet) after dom0 let its page go"
    assert domu.mapped_refs() == rings_alone, "dom0 maps pages of an idle disk for good"
    _, now = shown(domu)
    assert now.deferred == back.deferred + 1, (
        f"one request waited for its page: the back end counts {now.deferred} deferred unmaps, "
        f"and {back.deferred} before"
    )
