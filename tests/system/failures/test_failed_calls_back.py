"""The back end when one of its calls fails: it says so and closes, or does without; no leak.

Every place in the driver that calls for memory, xenstore, a mapping, an event channel, a thread or
an entry in sysfs is let fail, one in each attempt to attach, use and detach a disk.
"""

from __future__ import annotations

import errno

import failing_calls
import pytest
from disk_by_hand import DiskByHand
from failing_calls import KINDS, FailingCalls
from failure_actions import Resizing, bind_again, load_fails
from failure_cases import Case, cases_of
from failure_checks import SAID_WITHIN, Sweep, check

from emu.deadline import Deadline, poll
from emu.images.context import BuildContext
from emu.rig import RigHost, RigLun
from emu.xen.drivers import BACK

pytestmark = [pytest.mark.timeout(1800), pytest.mark.stack(domu_vcpus=2)]

TWO = {"max_queues": 2}
EVERY = {"xenstore": 6, "memory": 3, "devices": 2}
"""After so many calls that failed the next disk has to work: most end at the same places."""
ERROR_TO_CALLER = ("gnttab_page_cache_get",)
"""A request that can't be mapped ends with an error."""


def sweep(host: RigHost, context: BuildContext) -> Sweep:
    domu = host.create(ring_pages=4, front_parameters=TWO, back_parameters=TWO)
    return Sweep(domu, "back", failing_calls.module(host, "back", context), parameters=TWO)


def io_fails(case: Case) -> bool:
    return case.call.function in ERROR_TO_CALLER


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_of_a_disk_fails(
    host: RigHost, lun: RigLun, context: BuildContext, kind: str
) -> None:
    tried = sweep(host, context)
    calls = [call for call in tried.normal() if call.kind == kind]
    tried.run(cases_of(calls), io_fails=io_fails, every=EVERY[kind])
    check(tried)


@pytest.mark.long
def test_later_calls_of_a_disk_fail(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    tried = sweep(host, context)
    tried.run(
        (case for case in cases_of(tried.normal(), most=8) if case.nth > 1), io_fails=io_fails
    )
    check(tried)


def test_keys_that_keep_changing_are_refused(
    host: RigHost, lun: RigLun, context: BuildContext
) -> None:
    """They are read anew when one has changed meanwhile, up to 8 times."""
    tried = sweep(host, context)
    # The back end reads the front end's keys before it writes its own.
    ended = next(call for call in tried.normal() if call.function == "xenbus_transaction_end")
    for times, works in ((7, True), (8, False)):
        host.log.mark()
        tried.calls.fail(ended, 1, errno.EAGAIN, times=times)
        outcome = tried.attach()
        assert outcome.works == works, f"keys that changed {times} times: {outcome}"
        until = Deadline("a word of it in dom0's log", 0 if works else SAID_WITHIN)
        said = poll(lambda: host.log.lines("keeps changing its keys"), until)
        assert len(said) == (0 if works else 1), f"keys that changed {times} times: {said}"
        kept = tried.disk.take()
        assert not kept, f"a disk whose keys changed {times} times does not go: {kept}"
    check(tried)


def test_each_call_when_connected_again_fails(
    host: RigHost, lun: RigLun, context: BuildContext
) -> None:
    """A front end that is unbound and bound anew: what the back end does only then."""
    tried = sweep(host, context)
    first = {call.site for call in tried.normal()}
    again = [call for call in tried.normal(bind_again) if call.site not in first]
    assert again, "the back end calls nothing to wait for another connection"
    tried.run((Case(call, 1) for call in again), bind_again)
    check(tried)


def test_each_call_when_resized_fails(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    domu = host.create(ring_pages=4)
    resizing = Resizing(host)
    module = failing_calls.module(host, "back", context)
    tried = Sweep(domu, "back", module, DiskByHand(domu, resizing.device))
    tried.run(cases_of(tried.normal(resizing)), resizing)
    check(tried)


def test_each_call_of_loading_fails(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    domu = host.create()
    calls = FailingCalls(lambda: host.dom0, BACK, failing_calls.module(host, "back", context))
    wrong = load_fails(domu, "back", calls, "[ ! -e /sys/kernel/slab/blkif_cache ]")
    assert not wrong, "\n".join(wrong)
    ring = domu.attach(lun)
    assert ring.connected, "the driver that was loaded at last does not connect"
    assert domu.fill() == domu.sum(), "the back end that was loaded at last spoils data"
