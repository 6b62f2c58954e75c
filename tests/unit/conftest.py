"""What the unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs as they are written, for tests of what is printed of them."""
    monkeypatch.setenv("EMU_TIMEOUT_SCALE", "1")
