"""Time-outs: named, in seconds, scaled once.

Callers give plain seconds; `Deadline` multiplies them by one factor: `EMU_TIMEOUT_SCALE` of the
environment (default 1) times what was measured for this machine (`set_measured_factor`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from emu.errors import InputError

T = TypeVar("T")

POLL_PAUSE = 0.05
"""Seconds between two probes of `poll`."""

_measured = 1.0


def set_measured_factor(factor: float) -> None:
    """Set how much slower this machine (or clock) is than the one that time-outs are meant for."""
    global _measured
    _measured = max(1.0, factor)


def scale() -> float:
    """The factor that every time-out is multiplied by."""
    text = os.environ.get("EMU_TIMEOUT_SCALE", "1")
    try:
        asked = float(text)
    except ValueError:
        asked = math.nan
    if not (asked > 0 and math.isfinite(asked)):
        raise InputError(
            f"EMU_TIMEOUT_SCALE is {text!r}, not a positive number",
            hint="unset it, or try EMU_TIMEOUT_SCALE=2",
        )
    return asked * _measured


class Deadline:
    """A moment `seconds` (before scaling) from now, and what is awaited until then."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds * scale()
        self.began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds waited so far."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.seconds - self.spent)

    @property
    def passed(self) -> bool:
        return self.spent >= self.seconds

    def __str__(self) -> str:
        return f"{self.what} ({self.spent:.0f} s of {self.seconds:.0f} s)"


def poll(
    probe: Callable[[], T],
    deadline: Deadline,
    *,
    until: Callable[[T], object] = bool,
    pause: float = POLL_PAUSE,
) -> T:
    """Call `probe` until `until` holds for its value, by default until that is true.

    Returns the last value. When `deadline` has passed that is one for which `until` does not
    hold: the caller raises, as it knows what the value means. `probe` is called once at least,
    and once after the deadline; `pause` is in seconds, not scaled.
    """
    while True:
        last = deadline.passed
        value = probe()
        if last or until(value):
            return value
        time.sleep(min(pause, deadline.left))


@dataclass(frozen=True)
class Moving(Generic[T]):
    """How a wait for something that moves ended: its last `value`, seconds in all, and seconds
    since the value changed last. As text: whether it moved at the end."""

    value: T
    spent: float
    still: float
    stopped: bool
    """Whether nothing moved any more."""

    def __str__(self) -> str:
        if self.stopped:
            return f"nothing moved for {self.still:.0f} s"
        return f"still moving after {self.spent:.0f} s"


def poll_moving(
    probe: Callable[[], T],
    what: str,
    *,
    until: Callable[[T], object],
    still: float,
    within: float,
    pause: float = POLL_PAUSE,
) -> Moving[T]:
    """Like `poll`, of something that counts as lost only when it stands still.

    It goes on as long as the value of `probe` changes in every `still` seconds, but no longer
    than `within` (both before scaling). The caller looks whether `until` holds for the value.
    """
    whole, standing = Deadline(what, within), Deadline(what, still)
    value = probe()
    while not until(value):
        over = whole.passed or standing.passed
        time.sleep(min(pause, standing.left))
        if (now := probe()) != value:
            value, standing = now, Deadline(what, still)
            over = whole.passed
        if over:
            break
    return Moving(value, whole.spent, standing.spent, standing.passed)
