"""A driver that breaks its guest, or never connects, fails the tests: it is no error of the rig.

Each is a small patch to the stock drivers, and two tests as people write them: one has its disk
from a fixture, the other attaches it itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from emu_command import run_emu
from small_patches import edited

from emu.errors import EXIT_NOT_HELD
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_source import BACK, FRONT, driver_source
from emu.images.kernel_specs import spec

TESTS = """
import pytest
from emu.pytestplugin.short_names import *

@pytest.fixture
def connected(host, lun):
    return host.create(disk=lun)

def test_with_a_disk(connected):
    connected.fill()

def test_that_attaches(host, lun):
    domu = host.create()
    domu.attach(lun)
    domu.fill()
"""
XENBUS = f"{BACK}xenbus.c"
IN_BACK = '\tpr_debug("%s %s\\n", __func__, dev->otherend);\n\n\t/* Supply'
IN_FRONT = "\tswitch (info->connected) {\n\tcase BLKIF_STATE_CONNECTED:\n\t\t/*\n\t\t * Potentially"
FLAWS = {
    "dom0 panics": (XENBUS, IN_BACK, 'panic("no such disk");', "kernel panic"),
    "dom0 resets": (
        XENBUS,
        IN_BACK,
        "{ extern void emergency_restart(void); emergency_restart(); }",
        "QEMU ended .*guest-reset",
    ),
    "never connects": (FRONT, IN_FRONT, "return;", "xvda of domU u1 did not connect"),
    "domU hangs": (FRONT, IN_FRONT, "local_irq_disable(); for (;;) cpu_relax();", "u1: "),
    "domU ends": (
        FRONT,
        IN_FRONT,
        "{ extern void kernel_power_off(void); kernel_power_off(); }",
        "u1",
    ),
}
SHORT = "dom0 panics"
"""The others wait for what never comes, or differ in the end of the guest alone."""


def write_patch(flaw: str, context: BuildContext, folder: Path) -> None:
    """Write flaw.patch, to the stock drivers, into a folder."""
    name, before, what, _ = FLAWS[flaw]
    source = driver_source(spec("debian-6.1"), context)
    patch = edited(source, name, before, f"\t{what}\n{before}")
    (folder / "flaw.patch").write_text(f"A flaw.\n\n{patch}")


@pytest.mark.parametrize(
    "flaw",
    [pytest.param(one, marks=[] if one == SHORT else [pytest.mark.long]) for one in FLAWS],
)
def test_flaw_is_a_failure_of_each_test(
    everything: Cache, context: BuildContext, tmp_path: Path, flaw: str
) -> None:
    write_patch(flaw, context, tmp_path)
    said = FLAWS[flaw][-1]
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["--driver-patches=flaw.patch", "--on=stock", "-p", "no:cacheprovider", "-ra"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert "2 failed in " in done.stdout.splitlines()[-1], (
        f"a flaw of a driver ({flaw}) is no failure of both tests:\n{done.stdout[-6000:]}"
    )
    failures = re.findall(r"^E {7}(?:emu\.)?[\w.]+: .*", done.stdout, re.MULTILINE)
    told = [line for line in failures if re.search(said, line)]
    assert len(told) >= 2, f"the reports do not say {said!r}: {failures}"


def test_flaw_is_what_does_not_hold_of_a_run(
    everything: Cache, context: BuildContext, tmp_path: Path
) -> None:
    """For a bisection: bad, and nothing to skip."""
    write_patch(SHORT, context, tmp_path)
    patch = str(tmp_path / "flaw.patch")
    done = run_emu("run", "--data=1", "--driver-patches", patch, "--on", "stock")
    assert done.returncode == EXIT_NOT_HELD, done.stderr
    assert "dom0: kernel panic" in done.stderr
