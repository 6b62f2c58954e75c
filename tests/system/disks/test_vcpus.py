"""A disk with several queues while its domU's CPUs come and go."""

from __future__ import annotations

import pytest
from driver_checks import check_data, check_queues

from emu.errors import InputError
from emu.rig import RigHost, RigLun
from emu.rig.verifying import Load
from emu.xen import vcpus

LOAD = Load(rate=40)
MORE = 10
"""Answers that the domU gets after each change."""
READ_FROM_EACH = """
for cpu in $(seq 0 $(($2 - 1))); do
    mask=$(printf %x $((1 << cpu)))
    timeout 20 taskset $mask dd if=/dev/$1 of=/dev/null bs=4k count=1 iflag=direct 2> /tmp/dd || {
        echo "CPU $cpu: $(cat /tmp/dd)"; }
done
"""


@pytest.mark.stack(kernel="lab", domu_memory=256, domu_vcpus=4)
def test_disk_works_while_cpus_come_and_go(host: RigHost, lun: RigLun) -> None:
    four = {"max_queues": 4}
    domu = host.create(disk=lun, front_parameters=four, back_parameters=four)
    for number in (0, 5):
        with pytest.raises(InputError, match=f"has 1 to 4 vCPUs, not {number}"):
            domu.set_vcpus(number)
    check_queues(domu.ring(), 4)
    with domu.verifying_io(load=LOAD) as io:
        io.await_answers(MORE)
        for number in (1, 3, 2, 4):
            domu.set_vcpus(number)
            given = host.xen.domain_info(domu.name).vcpus
            assert given == number, f"Xen runs {given} vCPUs of {number}"
            io.await_answers(MORE)
            words = ["sh", "-c", READ_FROM_EACH, "sh", domu.block(), str(number)]
            failed = domu.channel.run(words, timeout=120).text
            assert not failed, f"with {number} CPUs a read is not answered: {failed}"
    check_queues(domu.ring(), 4)

    other = host.create_lun()
    small = host.create(disk=other, memory=64, vcpus=1, max_vcpus=2, front_parameters=four)
    check_queues(small.ring(), 1)
    small.detach()
    small.set_vcpus(2)
    small.load_front(max_queues=2)
    check_queues(small.attach(other), 2)
    check_data(small)
    assert vcpus.online(domu.domain) == 4, "another domU's CPUs have changed"
