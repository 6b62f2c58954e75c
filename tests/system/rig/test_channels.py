"""The command channels on the real stack: exact bytes, many commands at once, files both ways."""

from __future__ import annotations

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from emu.channel.channel import Channel, CommandTimeout
from emu.channel.result import ChannelLost
from emu.deadline import Deadline, poll, scale
from emu.stack.stack import Stack

MIB = 1 << 20


def channels(stack: Stack) -> tuple[Channel, Channel]:
    return stack.host.dom0, stack.domain.channel


def test_output_status_and_errors_are_exact(stack: Stack) -> None:
    for channel in channels(stack):
        data = os.urandom(50_000)
        answer = channel.run(
            ["sh", "-c", "tee /dev/stderr; exit 7"], input=data, timeout=30, check=False
        )
        assert (answer.status, answer.signal) == (7, None)
        assert answer.stdout == data
        assert answer.stderr == data


def test_commands_at_once_do_not_wait_for_each_other(stack: Stack) -> None:
    for channel in channels(stack):
        until = Deadline("eight commands of 2 s at once", 8)
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(channel.run, f"sleep 2; echo {number}", timeout=30)
                for number in range(8)
            ]
            assert [job.result().text for job in jobs] == [f"{n}\n" for n in range(8)]
        assert not until.passed, f"{channel.name}: commands wait for each other: {until}"


def test_time_limit_ends_the_whole_tree(stack: Stack) -> None:
    for channel in channels(stack):
        limit = f"{scale():g}"
        with pytest.raises(CommandTimeout, match=f"{channel.name}: .*did not end within {limit} s"):
            channel.run("echo begun; sleep 987 & sleep 987", timeout=1)
        left = channel.run("pgrep -f 'sleep 987' || true", timeout=20).text
        assert left == ""


@pytest.mark.timeout(300)
@pytest.mark.long
def test_files_of_100_mib_through_dom0(stack: Stack) -> None:
    data = os.urandom(MIB) * 100
    dom0 = stack.host.dom0
    dom0.put(data, "/scratch/large")
    digest = dom0.run("sha256sum < /scratch/large", timeout=120).text.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    assert dom0.get("/scratch/large") == data


@pytest.mark.timeout(300)
def test_files_through_the_domu(stack: Stack) -> None:
    data = os.urandom(MIB)
    domu = stack.domain.channel
    domu.put(data, "/tmp/file", mode=0o640)
    assert domu.run("stat -c %a /tmp/file; sha256sum < /tmp/file", timeout=60).text.split()[:2] == [
        "640",
        hashlib.sha256(data).hexdigest(),
    ]
    assert domu.get("/tmp/file") == data


@pytest.mark.timeout(300)
@pytest.mark.long
@pytest.mark.stack(domu_kernel="debian-7.3", domu="pvh")
def test_console_that_linux_7_has_dropped_is_probed_anew(stack: Stack) -> None:
    dom0, domain = stack.host.dom0, stack.domain
    front = f"/local/domain/{domain.domid}/device/console/1/state"
    with contextlib.suppress(ChannelLost):
        domain.channel.run("echo console-1 > /sys/bus/xen/drivers/xenconsole/unbind", timeout=20)
    closed = Deadline("the console to be closed", 20)
    assert poll(lambda: dom0.run(["xenstore-read", front], timeout=20).text.strip() == "6", closed)
    # What is left of a device that the kernel took for reset: Initialised, and nobody there.
    dom0.run(["xenstore-write", front, "3"], timeout=20)
    domain.close()
    anew = Deadline("the console to be connected again", 60)
    assert poll(lambda: dom0.run(["xenstore-read", front], timeout=20).text.strip() == "4", anew)
    assert domain.open_channel(30).run("echo again", timeout=20).text == "again\n"
