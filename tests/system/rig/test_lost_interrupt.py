"""A timer that QEMU loses: without the watchdog Xen and its guests would wait for it for ever."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from emu.rig import RigHost

REMARK = "rig | QEMU slept for 1 s: an interrupt was lost, its guests are woken"
_LOSES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* If the file $LOSE_A_TIMER exists: drop one expired timer, and remove the file. */
int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *time, const sigset_t *mask)
{
    int (*real)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *) =
        dlsym(RTLD_NEXT, "ppoll");
    const char *lose = getenv("LOSE_A_TIMER");
    int ready = real(fds, count, time, mask);

    if (!ready && time && (time->tv_sec || time->tv_nsec) && lose && !unlink(lose))
        ready = real(fds, count, NULL, mask);
    return ready;
}
"""


@pytest.fixture
def lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every QEMU started from now on loses its next timer once this file is made."""
    source, library, flag = tmp_path / "lose.c", tmp_path / "lose.so", tmp_path / "lose"
    source.write_text(_LOSES)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("LOSE_A_TIMER", str(flag))
    return flag


def test_watchdog_wakes_a_machine_that_lost_a_timer(lose: Path, host: RigHost) -> None:
    with host.dom0.spawn(["sleep", "2"]) as process:
        time.sleep(1)  # until the stack is idle: a running CPU would set a new timer
        lose.touch()
        process.wait(timeout=20)
    assert not lose.exists()
    assert host.xen.watchdog
    assert host.xen.watchdog.fired
    machine = host.stack.machine
    log = machine.rundir.log("console")
    machine.watch.wait(lambda: REMARK in log.read_text(), "the remark", 10)
