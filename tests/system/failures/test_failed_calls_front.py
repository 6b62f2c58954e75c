"""The front end when one of its calls fails: it says so and closes, or does without; no leak.

Every place in the driver that calls for memory, xenstore, a grant, an event channel or the block
layer is let fail, one in each attempt to attach, use and detach a disk, or to resume with one.
"""

from __future__ import annotations

import failing_calls
import pytest
from disk_by_hand import DiskByHand, DiskByXl
from failing_calls import KINDS, FailingCalls
from failure_actions import Resizing, load_fails, save_and_restore
from failure_cases import cases_of
from failure_checks import Sweep, check

from emu.images.context import BuildContext
from emu.rig import RigHost, RigLun
from emu.xen.drivers import FRONT

pytestmark = [pytest.mark.timeout(1800), pytest.mark.stack(domu_vcpus=2)]

TWO = {"max_queues": 2}
EVERY = {"xenstore": 6, "memory": 3, "devices": 2}
"""After so many calls that failed the next disk has to work: most end at the same places."""


def sweep(host: RigHost, context: BuildContext, **front: int) -> Sweep:
    domu = host.create(ring_pages=4, front_parameters={**TWO, **front}, back_parameters=TWO)
    module = failing_calls.module(host, "front", context)
    return Sweep(domu, "front", module, parameters={"max_ring_pages": 4, **TWO, **front})


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_of_a_disk_fails(
    host: RigHost, lun: RigLun, context: BuildContext, kind: str
) -> None:
    tried = sweep(host, context)
    calls = [call for call in tried.normal() if call.kind == kind]
    tried.run(cases_of(calls), every=EVERY[kind])
    check(tried)


def test_each_key_of_a_ring_of_one_page_fails(
    host: RigHost, lun: RigLun, context: BuildContext
) -> None:
    """They have other names than those of larger rings, and stand in one directory."""
    domu = host.create(ring_pages=1)
    module = failing_calls.module(host, "front", context)
    tried = Sweep(domu, "front", module, parameters={"max_ring_pages": 1})
    calls = [call for call in tried.normal() if call.function == "xenbus_printf"]
    assert "ring-ref" in {call.key for call in calls}, f"the front end writes {calls} alone"
    tried.run(cases_of(calls), every=EVERY["xenstore"])
    check(tried)


@pytest.mark.long
def test_later_calls_of_a_disk_fail(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    tried = sweep(host, context)
    tried.run(case for case in cases_of(tried.normal(), most=8) if case.nth > 1)
    check(tried)


@pytest.mark.long
def test_each_call_without_persistent_grants_fails(
    host: RigHost, lun: RigLun, context: BuildContext
) -> None:
    """Pages for the segments of indirect requests are asked for only then."""
    tried = sweep(host, context, feature_persistent=0)
    tried.run(cases_of(tried.normal(), most=2))
    check(tried)


@pytest.mark.stack(domu_memory=128)
@pytest.mark.parametrize("most", [3, pytest.param(0, marks=pytest.mark.long, id="all")])
def test_each_call_of_a_resume_fails(
    host: RigHost, lun: RigLun, context: BuildContext, most: int
) -> None:
    domu = host.create(ring_pages=4, front_parameters=TWO, back_parameters=TWO)
    module = failing_calls.module(host, "front", context)
    tried = Sweep(domu, "front", module, DiskByXl(domu))
    cases = list(cases_of(tried.normal(save_and_restore), most=1))
    tried.run(cases[:: len(cases) // most][:most] if most else cases, save_and_restore)
    check(tried)


def test_each_call_when_resized_fails(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    domu = host.create(ring_pages=4)
    resizing = Resizing(host)
    module = failing_calls.module(host, "front", context)
    tried = Sweep(domu, "front", module, DiskByHand(domu, resizing.device))
    tried.run(cases_of(tried.normal(resizing)), resizing)
    check(tried)


def test_each_call_of_loading_fails(host: RigHost, lun: RigLun, context: BuildContext) -> None:
    domu = host.create()
    calls = FailingCalls(lambda: domu.channel, FRONT, failing_calls.module(host, "front", context))
    wrong = load_fails(domu, "front", calls, "! grep -q xvd /proc/devices")
    assert not wrong, "\n".join(wrong)
    ring = domu.attach(lun)
    assert ring.connected, "the driver that was loaded at last does not connect"
    assert domu.fill() == domu.sum(), "the front end that was loaded at last spoils data"
