"""A plugin of the pytest that judges a mutant: the time limits of its tests, and when it ends.

    pytest -p emu.suite.mutation.limits --emu-trial trial.json …

The file has `limits`, an object with the seconds that each test may take, and `seconds`, the time
for all of them. The session ends with the first test that fails, with the second that the rig
breaks in, and when its time is over.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

_BROKEN_RIGS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("emu").addoption("--emu-trial", metavar="FILE", help="for `emu mutants`")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--emu-trial"):
        trial = json.loads(Path(file).read_text())
        config.pluginmanager.register(_Trial(trial["limits"], trial["seconds"]), "emu-trial")


class _Trial:
    def __init__(self, limits: dict[str, float], seconds: float) -> None:
        self._limits, self._seconds = limits, seconds
        self._began = time.monotonic()
        self._broken = 0
        self._end = ""
        self._session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if limit := self._limits.get(item.nodeid):
                # The first of an item's marks counts, and a test may have one itself.
                item.add_marker(pytest.mark.timeout(limit), append=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.when == "call":
            self._end = "a test has failed"
        elif report.failed:
            self._broken += 1
            if self._broken == _BROKEN_RIGS:
                self._end = "the rig is broken"

    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() - self._began > self._seconds:
            self._end = self._end or "the time is over"
        if self._end and self._session is not None:
            self._session.shouldfail = self._end
