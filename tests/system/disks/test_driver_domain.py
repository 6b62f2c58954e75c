"""A domU serves its disk to another: the back end is in a driver domain."""

from __future__ import annotations

import pytest
from driver_checks import check_pages, check_quiet
from kept import kept_by_back

from emu.deadline import Deadline, poll
from emu.errors import InputError
from emu.rig import Ledger, RigHost, RigLun
from emu.rig.verifying import Load

SERVED = "xvdb"
GONE_WITHIN = 20.0
READ = f"exec dd if=/dev/{SERVED} of=/dev/null bs=4k count=1 iflag=direct"


@pytest.mark.stack(domu_memory=128)
def test_domu_serves_its_disk_to_another(host: RigHost, lun: RigLun, ledger: Ledger) -> None:
    """When the one that serves is destroyed its requests wait, until the disk is taken away."""
    user = host.create(ring_pages=4)
    server = host.create(memory=128, ring_pages=16)
    server.load_back(max_ring_pages=8)
    with pytest.raises(InputError, match="serves other domUs of its host"):
        server.serve("xvda", server)
    with ledger.unchanged():
        server.attach(lun)
        before = kept_by_back(server.channel)
        ring = server.serve(lun, user, SERVED)
        check_pages(ring, 4, "between two domUs")
        check_pages(server.ring(), 16, "beside the one that it serves")
        offered = ring.offer.pages
        assert offered == 8, f"the back end in the domU offers {offered} pages, it has 8"
        key = user.domain.front_tree(SERVED).integer("backend-id")
        assert key == server.domain.domid, f"the back end is in domain {key}"
        with user.verifying_io(disk=SERVED, load=Load(rate=100)) as io:
            io.await_answers(100)
        served = user.statistic("wr_req", SERVED)
        assert served, "the back end in the domU has counted no write"
        for moved in (user, server):
            with pytest.raises(InputError, match="can't be moved"):
                moved.save()
        ledger.look()
        check_quiet(user, "back", SERVED)
        user.detach(SERVED)
        user.wait_gone(SERVED)
        left = kept_by_back(server.channel) - before
        assert not left, f"the domU that served a disk keeps {sorted(left)}"
        keys = host.xen.xenstore(f"/local/domain/{server.domain.domid}/backend").values
        assert not keys, f"xenstore keeps the back end of a disk that is gone: {keys}"
        server.detach()

    server.attach(lun)
    server.serve(lun, user, SERVED)
    with lun.held():
        reader = user.channel.spawn(READ)
        user.wait_outstanding(1, SERVED)
        server.destroy()
    states = user.domain.front_tree(SERVED).state(), user.domain.back_tree(SERVED).state()
    assert states == ("Connected", "absent"), f"a disk whose server is destroyed: {states}"
    assert reader.ended is None, f"a request that nobody can answer: the reader {reader.ended}"
    user.force_detach(SERVED)
    until = Deadline("the read to fail", GONE_WITHIN)
    ended = poll(lambda: reader.ended, until)
    assert ended, f"a read of a disk that is gone still waits {until.spent:.0f} s later"
    assert ended.status == 1, f"a read of a disk that is gone {ended}"
    user.wait_gone(SERVED)
    until = Deadline("the domain that served to be gone", GONE_WITHIN)
    tables = poll(
        lambda: [table.domid for table in host.xen.grants().tables],
        until,
        until=lambda now: now == [0, user.domain.domid],
    )
    assert tables == [0, user.domain.domid], f"Xen has grant tables of the domains {tables}"
