"""Options that put another driver under test: what `patched` means for a whole run of pytest.

    pytest --driver-patches my.patch tests/system       our series with this patch more
    pytest --front my/xen-blkfront.ko tests/system      this module as the patched front end

They are handed on in the environment, so that the workers of `pytest -n` and the `emu` that
tests start have the same drivers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emu.images.modules import ENDS, GIVEN, MODULE, MORE_PATCHES


def add_options(group: pytest.OptionGroup) -> None:
    """Add the options to pytest's."""
    group.addoption(
        "--driver-patches",
        action="append",
        default=[],
        metavar="PATH",
        help='what is "patched" has this patch, too, after the series (a directory: all in it, '
        "by name); repeatable",
    )
    for end in ENDS:
        group.addoption(
            f"--{end}", metavar="FILE.ko", help=f'the module {MODULE[end]} that is "patched"'
        )


def configure(config: pytest.Config) -> None:
    """Let `patched` mean what the options say. Raises UsageError for a file that is not there."""
    patches = [_there(name) for name in config.getoption("--driver-patches")]
    if patches:
        os.environ[MORE_PATCHES] = os.pathsep.join(patches)
    for end in ENDS:
        if given := config.getoption(f"--{end}"):
            os.environ[GIVEN[end]] = _there(given)


def _there(name: str) -> str:
    path = Path(name).absolute()
    if not path.exists():
        raise pytest.UsageError(f"there is no {name}")
    return str(path)
