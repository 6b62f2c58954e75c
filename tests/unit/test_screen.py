"""What a command prints while it waits, where standard error is no terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from emu import screen
from emu.progress import Progress, staged
from emu.screen import Screen

SOON = 0.2


@pytest.fixture
def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Waits until the text is printed; all that was printed by then."""
    monkeypatch.setattr(screen, "SIGN_OF_LIFE", SOON)
    monkeypatch.setattr(screen, "QUIET_SIGN_OF_LIFE", SOON)
    seen = ""

    def wait(text: str) -> str:
        nonlocal seen
        end = time.monotonic() + 10
        while text not in seen:
            assert time.monotonic() < end, f"{text!r} was not printed: {seen!r}"
            time.sleep(0.02)
            seen += capsys.readouterr().err
        return seen

    return wait


def test_wait_inside_a_stage_names_stage_and_tick(printed: Callable[[str], str]) -> None:
    with Screen() as shown, shown.stage("starting the stack"):
        printed("starting the stack …\n")
        printed("  … starting the stack (")
        shown.tick("waiting for dom0")
        printed("  … starting the stack: waiting for dom0 (")


def test_wait_outside_of_stages_is_no_silence(printed: Callable[[str], str]) -> None:
    with Screen():
        printed("  … still at work (")


def test_quiet_screen_prints_what_is_awaited_and_no_more(printed: Callable[[str], str]) -> None:
    with Screen(quiet=True) as shown:
        shown.note("a note")
        with shown.stage("building"):
            assert printed("… building (").startswith("  … building (")


class Recorded(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        self.stages.append(what)
        yield
        self.stages.append(f"{what} ended")


def test_begin_and_end_of_a_manager_are_stages() -> None:
    progress = Recorded()
    with staged(contextlib.nullcontext(7), progress, "start", "stop") as value:
        assert value == 7
        assert progress.stages == ["start", "start ended"]
    assert progress.stages[2:] == ["stop", "stop ended"]


def test_error_reaches_the_manager_within_the_last_stage() -> None:
    progress, seen = Recorded(), []

    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append((error, progress.stages[-1]))
            raise

    with (
        pytest.raises(ValueError, match="a fault") as raised,
        staged(manager(), progress, "start", "stop"),
    ):
        raise ValueError("a fault")
    assert seen == [(raised.value, "stop")]
