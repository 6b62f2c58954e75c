"""Two `emu run` at once in one checkout: both hold, and everything is built once."""

from __future__ import annotations

import pytest
from emu_command import Warm, assert_clean

pytestmark = pytest.mark.timeout(300)

BUILDS = ("compiling emu-agent …", "building the guest images …", "building the drivers for ")


def test_with_a_warm_cache(warm: Warm) -> None:
    home = warm.home()
    both = [warm.run(home), warm.run(home)]
    assert both[0].process.poll() is None, "the first had ended before the second began"
    for command in both:
        command.succeed()
        assert "building" not in command.stderr
    assert_clean(home)


@pytest.mark.long
def test_with_nothing_but_packages(warm: Warm) -> None:
    """The kernel is there too: unpacking it takes a while and locks like everything else."""
    built = ("guest-programs", "guests", "driver-source", "drivers", "checkpoint", "accel")
    home = warm.home(without=built)
    both = [warm.run(home), warm.run(home)]
    output = [command.succeed(250).stderr for command in both]
    for stage in (*BUILDS, "booting once, for a checkpoint"):
        assert sum(one.count(stage) for one in output) <= 2, stage
        assert sum(f"{stage}" in one for one in output) == 1, f"{stage} in {output}"
    assert any("waiting for pid " in one for one in output)
    assert_clean(home)
