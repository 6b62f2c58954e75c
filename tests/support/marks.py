"""Markers that several test modules put on their cases."""

from __future__ import annotations

import pytest

LATER = pytest.mark.stack(kernel="debian-6.12", domu_memory=256)
"""For the few cases that run on the other kernel of the series by default, too; all of them
do with `--kernel debian-6.12`. The packaged kernel: nothing needs to be built for it."""
