"""Tests as a user of the plugin writes them; test_plugin.py runs them and reads the reports."""

import os
import signal

import pytest


def test_ring_shrinks_over_restore(host, lun):
    domu = host.create(disk=lun, ring_pages=16)
    with domu.verifying_io(outstanding=512):
        domu.save_and_restore(max_ring_pages=2)
    assert domu.ring(lun).pages == 2


def test_that_fails(host, lun):
    domu = host.create(disk=lun, ring_pages=16)
    assert domu.ring(lun).pages == 7


def test_in_which_nothing_connects(host, lun):
    domu = host.create(disk=lun, front=None)
    domu.domain.wait_connected(timeout=0.5)


def test_in_which_qemu_ends(host):
    host.stack.machine.kill()
    host.xen.info()


def test_in_which_qemu_is_killed(host):
    os.kill(host.stack.machine.pid, signal.SIGKILL)


def test_that_leaves_trouble(host):
    host.dom0.run("echo 'BUG: kernel NULL pointer dereference' > /dev/kmsg", timeout=5)


@pytest.mark.timeout(8)
def test_that_hangs(domu):
    # No sleep: on instruction time an idle guest has slept a hundred seconds in a few.
    domu.run("tail -f /dev/null", timeout=200)
