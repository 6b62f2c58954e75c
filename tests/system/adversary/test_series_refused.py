"""The series: the back end does not do what it does not offer, whoever asks for it."""

from __future__ import annotations

from back_ends import front_end
from raw_cases import RAW, Cases, play, told
from raw_requests import UNSUPPORTED, RawFrontEnd, discard

from emu.rig import RigDomu, RigHost, RigLun


def refused(domu: RigDomu, disk: str, flag: int) -> str:
    """What is wrong with the answer to a discard that was not offered."""
    cases = Cases(RawFrontEnd(domu, disk), domu.lun(disk))
    cases.refused("it", discard(cases.place(), 64, flag), UNSUPPORTED)
    return told(play(cases))


def test_discard_that_is_not_offered_is_refused(host: RigHost, lun: RigLun) -> None:
    """A stock back end discards for any front end that asks, though dom0 forbids it
    (`discard-enable` 0), and says of a secure discard that it is done, when a plain one is."""
    domu = host.create(disk=[lun, host.create_lun(size_mib=16)], front=None)
    host.xen.write({f"{domu.domain.back_path('xvdb')}/discard-enable": "0"})
    domu.load_front(front_end(host, RAW))
    domu.wait_connected("xvda")
    domu.wait_connected("xvdb")
    wrong = {
        "a secure discard": refused(domu, "xvda", 1),
        "a discard of a disk without": refused(domu, "xvdb", 0),
    }
    wrong = {name: what for name, what in wrong.items() if what}
    assert not wrong, told(wrong)
