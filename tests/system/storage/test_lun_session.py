"""The LUN's iSCSI session is lost, for a short time and for a long one, and comes back."""

from __future__ import annotations

import errno

import pytest
from asking import PAGE, Asker, Content, check_good, faults, read, write

from emu.errors import InputError
from emu.images.cache import Cache
from emu.rig import RigHost, RigLun

PLACES = [n * 16 * PAGE for n in range(8)]


def test_io_waits_while_the_session_is_lost(host: RigHost, lun: RigLun) -> None:
    """Shorter than the replacement time-out: the domU's I/O goes on with nothing lost, doubled or
    failed. The first time it is back by itself, then with the end of the body."""
    domu = host.create(disk=lun)
    with domu.verifying_io() as io:
        io.await_answers(100)
        for seconds in (2.0, None):
            with lun.unreachable(seconds):
                lost = lun.session()
                answered = io.answered()
                meanwhile = io.answered() - answered
            assert (lost.state, lost.device) == ("FAILED", "blocked"), f"the session is {lost}"
            assert not meanwhile, f"{meanwhile} requests were answered without a session"
            io.await_answers(100)
    assert io.ledger, "the I/O was not judged"
    domu.wait_back("Connected")


def test_requests_fail_when_the_session_stays_lost(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    """Longer than the replacement time-out: what waits fails then, and what comes fails at once;
    when the session is back the disk works, and what had failed can be done again."""
    domu = host.create(disk=lun)
    asker, content = Asker(domu.channel, "/dev/xvda", cache), Content(lun)
    check_good(content.done(asker.ask(*(write(at, 1, (0, PAGE)) for at in PLACES))))
    mark = lun.mark()
    again = [write(at, 2, (0, PAGE)) for at in PLACES]
    lun.unreachable(replacement_timeout=2)
    begun = asker.begin(*again, together=True)
    results = {
        "waited": [each.result for each in begun.answers()],
        "came later": [
            each.result for each in asker.ask(*again[:2], read(0, 0, (0, PAGE)), "fsync")
        ],
    }
    lost = lun.session()
    lun.reachable()
    wrong: list[str] = []
    if lost.device != "transport-offline":
        wrong.append(f"the session is {lost} after the replacement time-out")
    for what, found in results.items():
        if set(found) != {-errno.EIO}:
            wrong.append(f"requests that {what} are answered with {found}, not with {-errno.EIO}")
    if reached := lun.requests(mark).writes:
        wrong.append(f"writes reached a LUN that can't be reached: {reached}")
    wrong += content.differences(0, PLACES[-1] + PAGE)
    wrong += faults(content.done(asker.ask(*again, together=True)))
    wrong += content.differences(0, PLACES[-1] + PAGE)
    assert not wrong, "\n".join(wrong)
    domu.wait_back("Connected")


def test_session_is_not_lost_while_requests_are_held(
    host: RigHost, lun: RigLun, cache: Cache
) -> None:
    for seconds, timeout, said in ((0.0, 5, "lost for 0.0 s"), (1.0, -1, "can't wait -1 s")):
        with pytest.raises(InputError, match=said):
            lun.unreachable(seconds, replacement_timeout=timeout)
    asker = Asker(host.dom0, lun.device, cache)
    with lun.held("writes"):
        begun = asker.begin(write(0, 1, (0, PAGE)))
        lun.await_outstanding(1)
        with pytest.raises(InputError, match="LUN lun0 holds requests: its session ends only"):
            lun.unreachable()
        state = lun.session().state
        assert state == "LOGGED_IN", f"a session that was not to be lost is {state}"
    check_good(begun.answers())
