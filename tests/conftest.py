"""Options of the tests: pytest knows those of a conftest.py above all tests alone."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel",
        metavar="NAME",
        help="the kernel of system tests that name none, as `emu run` takes it; those that "
        'ask for "lab" get the lab kernel of the same release',
    )
