"""Waits with a limit: `poll` on this machine, `Channel.wait_until` in a guest."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import agent_process
import pytest

from emu.channel.channel import TAIL_LIMIT, Channel, CommandFailed, CommandTimeout
from emu.deadline import Deadline, poll, poll_moving


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_process.build(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def guest(program: Path) -> Iterator[Channel]:
    with agent_process.serving(program) as (sock, _), Channel(sock, name="dom0") as channel:
        channel.hello(10)
        yield channel


def test_poll_returns_the_first_value_that_holds() -> None:
    values = iter([0, 0, 3, 4])
    assert poll(lambda: next(values), Deadline("a value", 10), pause=0.001) == 3


def test_poll_takes_a_condition_of_the_caller() -> None:
    values = iter(["init", "connected", "closed"])
    deadline = Deadline("a state", 10)
    seen = poll(lambda: next(values), deadline, until=lambda v: v == "connected", pause=0.001)
    assert seen == "connected"


def test_poll_returns_the_last_value_after_its_deadline(unscaled: None) -> None:
    numbers: list[int] = []

    def probe() -> list[int]:
        numbers.append(len(numbers))
        return []

    began = time.monotonic()
    assert poll(probe, Deadline("never", 0.2), pause=0.05) == []
    assert 0.2 <= time.monotonic() - began < 2
    assert len(numbers) > 2


@pytest.mark.parametrize(("seconds", "probes"), [(0, 1), (0.05, 2)])
def test_poll_probes_once_more_after_its_deadline(seconds: float, probes: int) -> None:
    """What became true during the last pause counts."""
    seen: list[bool] = []
    deadline = Deadline("never", seconds)

    def probe() -> bool:
        seen.append(deadline.passed)
        return False

    assert not poll(probe, deadline, pause=60)
    assert len(seen) == probes
    assert seen[-1]


def test_poll_repeats_a_probe_that_was_late(unscaled: None) -> None:
    """One that began before the deadline and ended after it does not show what held then."""
    values = iter([False, True])

    def probe() -> bool:
        time.sleep(0.1)
        return next(values)

    assert poll(probe, Deadline("true", 0.05), pause=0)


def test_poll_honours_the_timeout_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "3")
    began = time.monotonic()
    poll(lambda: False, Deadline("never", 0.1), pause=0.01)
    assert time.monotonic() - began >= 0.3


def test_wait_until_returns_what_the_condition_printed(guest: Channel, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    threading.Timer(0.3, file.write_bytes, [b"sda\n"]).start()
    assert guest.wait_until('cat "$1" && echo $2', "a file", 10, str(file), "x") == "sda\nx\n"


def test_wait_until_holds_at_once(guest: Channel) -> None:
    assert guest.wait_until("true # and no more", "nothing", 10) == ""


def test_wait_until_takes_many_lines(guest: Channel, tmp_path: Path) -> None:
    condition = """
    for file in $1/*; do
        [ -e $file ] && break
    done
    """
    (tmp_path / "there").touch()
    guest.wait_until(condition, "a file", 10, str(tmp_path))


def test_wait_until_names_what_did_not_come(guest: Channel, unscaled: None) -> None:
    script = "n=$((n+1)); echo try $n >&2; [ $n = 0 ]"
    with pytest.raises(CommandTimeout) as caught:
        guest.wait_until(script, "the disk of lun0", 0.5)
    assert caught.value.message == "dom0: waited 0.5 s for the disk of lun0"
    assert caught.value.lines[-1].startswith("try ")
    assert 1 < len(caught.value.lines) <= 15
    tries = int(caught.value.lines[-1].split()[1])
    assert tries < 26, "20 ms of pause between two tries"


def test_wait_until_honours_the_timeout_scale(
    guest: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "4")
    with pytest.raises(CommandTimeout, match=r"dom0: waited 0\.8 s for never"):
        guest.wait_until("false", "never", 0.2)
    began = time.monotonic()
    guest.wait_until("[ $(date +%s%N) -gt $1 ]", "later", 0.2, str(time.time_ns() + 400_000_000))
    assert time.monotonic() - began >= 0.4


def test_wait_until_leaves_nothing_behind(guest: Channel, unscaled: None, tmp_path: Path) -> None:
    with pytest.raises(CommandTimeout):
        guest.wait_until(f"[ -s {tmp_path}/pid ] || echo $$ > {tmp_path}/pid; false", "never", 1)
    pid = int((tmp_path / "pid").read_text())
    assert poll(lambda: not Path(f"/proc/{pid}").exists(), Deadline("its end", 10))


def test_wait_until_fails_where_the_condition_gives_up(guest: Channel) -> None:
    with pytest.raises(CommandFailed, match="ended with status 3") as caught:
        guest.wait_until("echo lost >&2; exit 3", "what is lost", 10)
    assert caught.value.lines == ("lost",)
    with pytest.raises(CommandFailed, match="ended with status 2"):
        guest.wait_until("fi", "what is no condition", 10)


def test_wait_until_bounds_what_it_keeps(guest: Channel) -> None:
    script = "n=$((n+1)); head -c 100000 /dev/zero; [ $n = 3 ] && echo last"
    text = guest.wait_until(script, "the third try", 30)
    assert len(text) == TAIL_LIMIT
    assert text.endswith("last\n")


def test_what_moves_is_waited_for(unscaled: None) -> None:
    """Longer than one that stands still, and named by how it ended."""
    counted = itertools.count()
    moving = poll_moving(
        lambda: next(counted), "ten", until=lambda n: n == 10, still=0.2, within=20, pause=0.05
    )
    assert (moving.value, moving.stopped) == (10, False)
    assert moving.spent > 0.4, "it did not go on for as long as it moved"
    stands = poll_moving(lambda: 3, "more", until=lambda n: n > 3, still=0.2, within=20)
    assert (stands.value, stands.stopped) == (3, True)
    assert 0.2 <= stands.spent < 10
    assert str(stands) == "nothing moved for 0 s"
    endless = poll_moving(
        lambda: next(counted), "no end", until=lambda n: n < 0, still=20, within=0.3
    )
    assert not endless.stopped
    assert str(endless) == "still moving after 0 s"
