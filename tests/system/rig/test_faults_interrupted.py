"""Ctrl-C, SIGTERM and SIGKILL at every stage of `emu run`: nothing stays behind."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emu_command import EmuCommand, Warm, assert_clean

from emu.errors import EXIT_INTERRUPTED
from emu.lab.run import STARTING

pytestmark = pytest.mark.timeout(180)

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> signal.Signals:
    signal_: signal.Signals = request.param
    return signal_


@pytest.fixture
def silent_mirror() -> Iterator[str]:
    """A mirror that takes connections and never answers: whoever fetches, goes on fetching."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/debian"


def interrupted(command: EmuCommand, number: signal.Signals, before: str) -> None:
    """Interrupt it in a stage, which comes before the one that says `before`; see that it ends
    soon and leaves nothing."""
    assert before not in command.stderr, f"it was past that, and said {before!r}"
    command.interrupt(number)
    status = command.wait(20)
    command.assert_nothing_runs()
    if number is signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == EXIT_INTERRUPTED, command.stderr
        assert "interrupted" in command.stderr
        assert "Traceback" not in command.stderr, command.stderr
        # After an orderly end nothing is left to clean up.
        assert not list((command.home / "emu-xen-block/tmp").iterdir())
    assert_clean(command.home)


def test_while_packages_are_fetched(warm: Warm, silent_mirror: str, number: signal.Signals) -> None:
    home = warm.home(without=("store", "guests"))
    command = warm.run(home, environ={"EMU_DEBIAN_MIRROR": silent_mirror})
    command.wait_said("fetching ")
    command.wait_until(
        lambda: any("methods/http" in line for line in command.family().values()), "apt's download"
    )
    interrupted(command, number, before="building the guest images")


def test_while_the_guests_are_built(warm: Warm, number: signal.Signals) -> None:
    home = warm.home(without=("guests",))
    command = warm.run(home)
    command.wait_said("building the guest images")
    time.sleep(1)
    interrupted(command, number, before=STARTING)
    if number is signal.SIGKILL:
        warm.run(home).succeed()


def test_while_the_drivers_are_built(warm: Warm, number: signal.Signals) -> None:
    home = warm.home(without=("drivers",))
    command = warm.run(home)
    command.wait_until(
        lambda: any("cc1" in line for line in command.family().values()), "the compiler"
    )
    interrupted(command, number, before=STARTING)


def test_while_the_checkpoint_boots(warm: Warm, number: signal.Signals) -> None:
    home = warm.home(without=("checkpoint",))
    command = warm.run(home)
    command.wait_until(command.qemus, "QEMU")
    time.sleep(2)
    interrupted(command, number, before="loading the drivers")


@pytest.mark.long
def test_while_the_checkpoint_is_saved(warm: Warm) -> None:
    home = warm.home(without=("checkpoint",))
    command = warm.run(home)
    command.wait_until(lambda: _ram_of_unfinished(home), "the RAM to be written")
    interrupted(command, signal.SIGKILL, before="loading the drivers")
    assert not list((home / "emu-xen-block").glob("checkpoint/*"))
    warm.run(home).succeed()


def _ram_of_unfinished(home: Path) -> bool:
    files = (home / "emu-xen-block/tmp").glob("checkpoint-*/entry/machine/ram")
    return any(path.stat().st_blocks for path in files)


def test_while_data_moves(warm: Warm, number: signal.Signals) -> None:
    home = warm.home()
    command = warm.emu(home, "run", "--data", "90")
    command.wait_said("writing and reading back")
    time.sleep(1)
    assert command.qemus()
    interrupted(command, number, before="reading the queues")
    if number is signal.SIGKILL:
        warm.run(home).succeed()
