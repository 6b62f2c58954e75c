"""The series: both drivers show their queues, and the two accounts agree."""

from __future__ import annotations

import dataclasses

import pytest
from driver_checks import READ_ONE, check_queues, shown

from emu.deadline import Deadline, poll
from emu.rig import RigHost, RigLun
from emu.rig.disks import STATE_WITHIN
from emu.xen.queues import BACK_ROOT, FRONT_ROOT


@pytest.mark.parametrize("pages", [1, 16])
def test_ends_agree(host: RigHost, lun: RigLun, pages: int) -> None:
    domu = host.create(disk=lun, ring_pages=pages)
    ring = domu.ring(lun)
    domu.fill(lun)
    wrong = list(ring.disagreements())
    assert not wrong, f"an end shows another ring than was negotiated: {wrong}"
    front, back = shown(domu)
    for account in (front, back):
        end = "front" if account is front else "back"
        numbers = {field.name for field in dataclasses.fields(account)} - {"number", "other"}
        lacks = sorted(numbers - account.numbers().keys())
        assert not lacks, f"the {end} end does not show {', '.join(lacks)}"
        ring_shown = (account.pages, account.size, account.outstanding)
        assert ring_shown == (pages, 32 * pages, 0), (
            f"the {end} end shows pages, requests and outstanding ones as {ring_shown} on an idle "
            f"ring of {pages} pages"
        )
    assert ring.key_pages == pages, f"the keys have {ring.key_pages} pages, not {pages}"
    indexes = (front.req_prod, front.rsp_cons, back.req_cons, back.rsp_prod)
    assert len(set(indexes)) == 1, (
        f"on an idle ring requests made and answers taken in front, requests taken and answers "
        f"made at the back differ: {indexes}"
    )
    assert back.rsp_prod, "the back end shows no answer, though data was written"
    assert back.requests == ring.requests, (
        f"the back end made {back.requests} requests for a ring of {ring.requests}"
    )
    assert back.persistent_grants == front.persistent_grants_free, (
        f"the back end keeps {back.persistent_grants} grants mapped, the front end "
        f"{front.persistent_grants_free} for it"
    )
    assert front.persistent_grants_free, "the front end keeps no persistent grant, but offered them"
    assert front.grants_free is not None, "the front end does not show its free grants"
    assert front.grants_free == front.grants, (
        f"of {front.grants} grants {front.grants_free} are free on an idle ring"
    )
    assert front.persistent_grants_free <= front.grants_free, (
        f"{front.persistent_grants_free} persistent grants are free, {front.grants_free} in all"
    )


def test_queues_are_shown_to_root_alone(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun)
    assert domu.queues().back, "the back end shows no queue"
    for guest, channel, root in (
        ("dom0", host.dom0, BACK_ROOT),
        ("the domU", domu.channel, FRONT_ROOT),
    ):
        script = "find $1 -name 'queue-*' -exec stat -c %a {} +"
        modes = channel.run(["sh", "-c", script, "sh", root], timeout=20).text.split()
        assert modes == ["400"], f"the modes of a ring's files in {guest} are {modes}, not 400"


def test_outstanding_requests_are_counted(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, ring_pages=4)
    with lun.held(), domu.channel.spawn(READ_ONE.format(domu.disk(lun))):
        lun.await_outstanding(1)
        counts = [account.outstanding for account in shown(domu)]
    assert counts == [1, 1], (
        f"front and back end count {counts} requests outstanding while the LUN holds one"
    )


@pytest.mark.stack(domu_vcpus=2)
def test_each_queue_is_shown_while_connected(host: RigHost, lun: RigLun) -> None:
    two = {"max_queues": 2}
    domu = host.create(disk=lun, ring_pages=2, front_parameters=two, back_parameters=two)
    check_queues(domu.ring(lun), 2)
    for queue in (0, 1):
        pages = [account.pages for account in shown(domu, queue)]
        assert pages == [2, 2], f"front and back end show {pages} pages of queue {queue}, not 2"
    domu.detach(lun)
    views = domu.queues().back
    assert views == (), f"the back end shows queues of a detached disk: {views}"
    until = Deadline("the domU's last step, which dom0 does not wait for", STATE_WITHIN)
    left = poll(lambda: domu.queues().front, until, until=lambda front: front == ())
    assert left == (), "the front end shows queues of a detached disk"


def test_stock_ends_show_nothing(host: RigHost, lun: RigLun) -> None:
    domu = host.create(disk=lun, front="stock", back="stock", ring_pages=2)
    ring = domu.ring(lun)
    views = (ring.views.front, ring.views.back)
    assert views == (None, None), f"stock drivers show queues: {views}"
    assert (ring.pages, ring.source) == (2, "xenstore"), (
        f"{ring.pages} pages by {ring.source}: of stock drivers there are the keys, of 2 pages"
    )
