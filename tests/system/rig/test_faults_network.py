"""Without a network: a full cache needs none, with an empty one the error comes within seconds."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from emu_command import Warm

from emu.deadline import Deadline
from emu.errors import EXIT_RIG

pytestmark = pytest.mark.timeout(120)

UNSHARE = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])


@pytest.fixture(params=["no network", "a mirror that refuses"])
def cut_off(request: pytest.FixtureRequest) -> dict[str, object]:
    """How to start `emu` without a network."""
    if request.param == "a mirror that refuses":
        return {"environ": {"EMU_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}}
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"]).returncode:
        pytest.skip("no network namespace to be had here")
    return {"wrapper": UNSHARE}


def test_full_cache_needs_no_network(warm: Warm, cut_off: dict[str, object]) -> None:
    warm.run(warm.home(), **cut_off).succeed()


@pytest.mark.long
def test_full_package_store_needs_no_network_to_build(warm: Warm) -> None:
    """The packages are there, nothing is built of them yet but the kernel."""
    home = warm.home(without=("guests", "guest-programs", "drivers", "driver-source"))
    warm.run(home, environ={"EMU_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}).succeed()


def test_empty_cache_without_network_is_reported(warm: Warm, cut_off: dict[str, object]) -> None:
    home = warm.folder / "empty"
    until = Deadline("the report", 15)
    output = warm.run(home, **cut_off).fail(EXIT_RIG)
    assert not until.passed, f"the missing network was reported late: {until}"
    assert (
        " more are not in the cache, and can't be fetched: getting the package lists of " in output
    )
    assert "apt failed" in output
    assert "is the network up? EMU_DEBIAN_MIRROR names another mirror" in output
    assert not list(home.rglob("*.deb"))
