"""The series: a disk whose back end has lied is given up, and can be replaced.

With a stock front end a request that was on the ring then waits for ever; so does the removal of
the disk, and with it whatever else xenbus has to do in the domU.
"""

from __future__ import annotations

import pytest
from told_answers import Command, ToldBackEnd

from emu.rig import Ledger, RigHost, RigLun

READ = "dd if=/dev/xvda of=/dev/null bs={}k count=1 skip={} iflag=direct"
LIES = {
    "an id that is none": "answer 32 = =",
    "an answer to no request": "answer = = =;answer = = =",
    "another operation": "answer = 1 =",
    "too many answers": "ahead -1",
}
KEPT = 3
"""Requests that are on the ring beside the one that is lied about."""


@pytest.mark.parametrize("persistent", [0, 1], ids=["mapped anew", "persistent"])
def test_requests_of_a_disk_that_is_given_up_fail(
    host: RigHost, lun: RigLun, ledger: Ledger, persistent: int
) -> None:
    told = ToldBackEnd(host, feature_persistent=persistent)
    domu = host.create()
    wrong = {}
    with ledger.unchanged():
        domu.attach(lun, "xvdb")
        written = domu.fill("xvdb")
        for name, lie in LIES.items():
            domu.attach(lun, "xvda")
            waiting = []
            for number in range(KEPT):
                told.answer("xvda", "keep")
                waiting.append(Command(domu, READ.format((4, 128)[number % 2], number)))
                assert told.wait(), "no request came to the back end"
            told.answer("xvda", lie)
            domu.run(READ.format(4, 9) + " || true")
            if (ended := [each.wait() for each in waiting]) != [1] * KEPT:
                wrong[name] = f"reads that were on the ring ended as {ended} (None: never)"
                break
            told.give("none")
            domu.detach("xvda")
            domu.wait_gone("xvda")
            domu.attach(lun, "xvda")
            if domu.sum("xvda") != written:
                wrong[name] = "the disk that was attached anew has other data"
            domu.detach("xvda")
            domu.wait_gone("xvda")
        assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
        assert domu.sum("xvdb") == written, "the disk beside has other data than was written"
        domu.detach("xvdb")
        domu.wait_gone("xvdb")
