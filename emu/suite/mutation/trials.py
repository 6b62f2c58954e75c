"""Run several tests on one mutant in one pytest, up to the first that fails; keep the outcomes.

What is kept of a mutant is a file of its own, with an outcome for each test and what it depends
on: after a change of a test only that one is run again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu import deadline
from emu.errors import RigError
from emu.images.cache import Cache
from emu.suite.mutation.compiling import STORE
from emu.suite.mutation.ordering import Reaching
from emu.suite.testruns import PYTEST, Outcome, Runs, Trial, interrupt, read_report

SCALE = 0.5
"""Time limits of waits, as a part of what they are otherwise: what hangs is to be cheap. A sound
driver is a good deal quicker (each test that notices a mutant is run without one, too)."""
_SLOWER, _MORE = 3.0, 20.0
"""A test may take so many times its usual time, and so many seconds (before scaling) more."""
_ALL_SLOWER = 2.0
_STUCK = 600.0
"""Seconds beyond all limits in which pytest has to end by itself."""
_RAN = (0, 1)
"""pytest's exit statuses when it ran tests."""
_LAST_LINES = 12
_LONGEST = 4000
"""Characters that are kept of a message."""


@dataclass(frozen=True)
class Tried:
    """A test and its outcome on a mutant."""

    node: str
    outcome: Outcome

    @property
    def hung(self) -> bool:
        """Whether the time limit of the whole test ended it."""
        return any(text.startswith("Failed: Timeout (>") for text in self.outcome.messages)

    @property
    def noticed(self) -> bool:
        """Whether the test failed: an error of the rig says nothing of a mutant."""
        return self.outcome.kind == "failed" or self.hung


class Trials:
    """Runs tests on mutants, and keeps the outcomes in the cache. Thread-safe."""

    def __init__(self, cache: Cache, *, again: bool = False) -> None:
        self._cache = cache
        self._place = cache.store(STORE) / "outcomes"
        self._place.mkdir(exist_ok=True)
        self._runs = Runs(cache, again=again)
        self._again = again
        self._fresh: set[str] = set()
        self._lock = threading.Lock()

    def known(self, name: str, patch: Path | None, nodes: Sequence[str]) -> list[Tried]:
        """What is kept of these tests on the mutant `name`; errors of the rig are not."""
        kept = self._kept(name)
        found: list[Tried] = []
        for node in nodes:
            one = kept.get(node)
            if one is not None and one["key"] == self._runs.key(Trial(node, patch)):
                found.append(_tried(node, one))
        return found

    def ever(self, name: str) -> list[Tried]:
        """What is kept of any tests on the mutant `name`, whatever has changed since."""
        return [_tried(node, one) for node, one in self._read(name).items()]

    def run(
        self, name: str, patch: Path | None, tests: Sequence[Reaching], seconds: float
    ) -> list[Tried]:
        """Run the tests in order up to the first that fails, or until the time is over.

        Outcomes that are not errors of the rig are kept, those before an interruption, too.
        Raises RigError when pytest itself breaks.
        """
        with self._cache.scratch("trial") as place:
            limits = {one.node: round(_limit(one), 1) for one in tests}
            trial = {"limits": limits, "seconds": _ALL_SLOWER * seconds + _MORE}
            (place / "trial.json").write_text(json.dumps(trial))
            report, log = place / "report.jsonl", place / "log"
            command = [
                *PYTEST, "--quiet", "-p", "no:cacheprovider", "-p", "emu.suite.mutation.limits",
                f"--emu-trial={place / 'trial.json'}", f"--report-log={report}",
                *([] if patch is None else ["--emu-driver-patches", str(patch)]),
                *(one.node for one in tests),
            ]  # fmt: skip
            try:
                with (
                    log.open("wb") as output,
                    self._runs.started(
                        command, output, {"EMU_TIMEOUT_SCALE": str(SCALE * deadline.scale())}
                    ) as process,
                ):
                    status = self._wait(process, sum(limits.values()))
            finally:
                found = list(_outcomes(report))
                self._keep(name, patch, found)
            if self._runs.stopped:
                raise RigError("interrupted")
            if status not in _RAN or not found:
                lines = log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
                raise RigError(f"pytest ended with status {status}", lines=lines)
            return found

    def stop(self) -> None:
        """End the tests that run, and start no more."""
        self._runs.stop()

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], limits: float) -> int:
        try:
            return process.wait(limits + _STUCK)
        except subprocess.TimeoutExpired:
            interrupt([process])
            raise RigError("pytest does not end") from None

    def _kept(self, name: str) -> dict[str, Any]:
        return {} if self._again and name not in self._fresh else self._read(name)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            kept = json.loads((self._place / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _keep(self, name: str, patch: Path | None, found: Sequence[Tried]) -> None:
        with self._lock, self._cache.scratch("outcomes") as scratch:
            kept = self._kept(name)
            self._fresh.add(name)
            for one in found:
                if one.outcome.kind != "error" or one.hung:
                    key = self._runs.key(Trial(one.node, patch))
                    kept[one.node] = {"key": key, **asdict(one.outcome)}
            (scratch / "kept").write_text(json.dumps(kept, indent=1))
            (scratch / "kept").replace(self._place / f"{name}.json")


def _tried(node: str, kept: Mapping[str, Any]) -> Tried:
    return Tried(node, Outcome(kept["kind"], tuple(kept["messages"]), kept["seconds"]))


def _limit(test: Reaching) -> float:
    return (_SLOWER * test.seconds + _MORE) * deadline.scale()


def _outcomes(report: Path) -> Iterator[Tried]:
    """The outcomes in a report log, in order, of the tests that ran to their end."""
    reports: dict[str, dict[str, str]] = {}
    with contextlib.suppress(OSError):
        for line in report.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):  # a line that was not finished
                reported = json.loads(line)
                if reported["$report_type"] == "TestReport":
                    reports.setdefault(reported["nodeid"], {})[reported["when"]] = line
    for node, phases in reports.items():
        outcome = read_report(phases.values())
        if outcome is not None and "teardown" in phases:
            short = tuple(text[:_LONGEST] for text in outcome.messages)
            yield Tried(node, Outcome(outcome.kind, short, outcome.seconds))
