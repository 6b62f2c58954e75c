"""Tests as a user of the plugin writes them; test_plugin.py runs them and reads the reports."""

import asyncio
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


def test_in_which_qemu_is_killed_unnoticed(host):
    os.kill(host.stack.machine.pid, signal.SIGKILL)
    assert host.xen is None, "nobody is told"


def test_whose_provenance_is_interrupted(host, monkeypatch):
    def interrupted(*_):
        raise asyncio.CancelledError

    monkeypatch.setattr("emu.lab.provenance.of", interrupted)


def test_in_which_dom0_resets_its_machine(host):
    host.dom0.run("echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger", timeout=20)


@pytest.fixture
def connected(host, lun):
    domu = host.create(disk=lun, front=None)
    domu.domain.wait_connected(timeout=0.5)


def test_whose_set_up_connects_nothing(connected):
    pass


def test_that_leaves_trouble(host):
    host.dom0.run("echo 'BUG: kernel NULL pointer dereference' > /dev/kmsg", timeout=5)


@pytest.mark.timeout(8)
def test_that_hangs(domu):
    # No sleep: on instruction time an idle guest has slept a hundred seconds in a few.
    domu.run("tail -f /dev/null", timeout=200)
