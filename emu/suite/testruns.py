"""Run one of our tests under pytest, in a process of its own, and keep its outcome.

The outcome is read from pytest's report log (pytest-reportlog: a JSON object a line, with the
fields of pytest's TestReport) and kept in the cache under everything it depends on; errors of
the rig are not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from emu import paths
from emu.errors import EmuError, RigError
from emu.images.cache import Cache, key_of
from emu.images.manifest import JSON
from emu.progress import Progress
from emu.suite import test_inputs

Kind = Literal["passed", "failed", "skipped", "error"]
_WORST: tuple[Kind, ...] = ("failed", "error", "skipped", "passed")
_KIND = "test-outcome"
_RECIPE = 2
"""Raised when the way a test is run changes its outcome; a part of cache keys."""
_RAN = (0, 1)
"""pytest's exit statuses when it ran the tests: all passed, some did not."""
_ENDS_WITHIN = 60.0
"""Seconds for an interrupted pytest to end its guests; then it is killed."""
PYTEST = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    # A process that was started in the background ignores SIGINT, and its children inherit that.
    *("env", "--default-signal=INT"),
    *(sys.executable, "-m", "pytest"),
)
"""pytest as a child that ends with this process, and on SIGINT."""
_LAST_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """The outcome of a test: pytest's word, the messages unless it passed, seconds."""

    kind: Kind
    messages: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A test by its pytest id, on drivers with one more `patch`; None: on the series."""

    node: str
    patch: Path | None = None

    @property
    def file(self) -> Path:
        """The file that has it."""
        return paths.checkout() / self.node.partition("::")[0]


class Runs:
    """Runs tests, each once: outcomes are kept in the cache. Thread-safe."""

    def __init__(self, cache: Cache, *, again: bool = False) -> None:
        self._cache = cache
        self._again = again
        self._rig = test_inputs.digest(test_inputs.rig_files())
        self._replaced = [list(pair) for pair in test_inputs.replaced(cache)]
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def known(self, test: Trial) -> Outcome | None:
        """The outcome that is kept; None if there is none, or with `again`."""
        if self._again:
            return None
        found = self._cache.find(_KIND, self._inputs(test))
        return None if found is None else _read(found)

    def key(self, test: Trial) -> str:
        """What a test's outcome depends on, as a hash: the cache keeps it under this key."""
        return key_of(_KIND, self._inputs(test))

    def outcome(self, test: Trial, progress: Progress) -> Outcome:
        """Run the test, unless its outcome is known."""
        if (kept := self.known(test)) is not None:
            return kept
        inputs = self._inputs(test)
        if self._again:
            self._cache.discard(_KIND, inputs)

        def build(made: Path) -> None:
            outcome = self._run(test)
            if outcome.kind == "error":
                raise _NotKept(outcome)
            (made / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))

        try:
            return _read(self._cache.entry(_KIND, inputs, build, progress))
        except _NotKept as one:
            return one.outcome

    def stop(self) -> None:
        """End the tests that run, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        interrupt(running)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def _inputs(self, test: Trial) -> dict[str, JSON]:
        return {
            "test": test.node,
            "patch": "" if test.patch is None else diff_digest(test.patch),
            "tests": test_inputs.of_tests(test.file),
            "rig": self._rig,
            **({"replaced": self._replaced} if self._replaced else {}),
            "recipe": _RECIPE,
        }

    def _run(self, test: Trial) -> Outcome:
        with self._cache.scratch("test-run") as place:
            report, log = place / "report.jsonl", place / "log"
            command = [*PYTEST, "--quiet", "-p", "no:cacheprovider", f"--report-log={report}"]
            if test.patch is not None:
                command += ["--emu-driver-patches", str(test.patch)]
            with log.open("wb") as output, self.started([*command, test.node], output) as process:
                status = process.wait()
            output_end = log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
            if self._stopped:
                raise RigError("interrupted")
            if status not in _RAN:
                raise RigError(f"pytest ended with status {status}: {test.node}", lines=output_end)
            outcome = read_report(report.read_text("utf-8").splitlines())
            if outcome is None:
                raise RigError(f"pytest did not run {test.node}", lines=output_end)
            return outcome

    @contextlib.contextmanager
    def started(
        self, command: Sequence[str], output: object, environ: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A pytest that `stop` ends, with `environ` added to its environment.

        Raises RigError after `stop`.
        """
        with self._lock:
            if self._stopped:
                raise RigError("interrupted")
            # In a session of its own: Ctrl-C reaches this process, which interrupts pytest.
            process = subprocess.Popen(
                command, cwd=paths.checkout(), env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL, start_new_session=True,
                stdout=output, stderr=subprocess.STDOUT,  # type: ignore[call-overload]
            )  # fmt: skip
            self._running.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._running.discard(process)


def interrupt(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """End pytests, each in a session of its own, and wait until their guests are gone."""
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class _NotKept(EmuError):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__("not kept")
        self.outcome = outcome


def read_report(lines: Iterable[str]) -> Outcome | None:
    """The outcome in a report log, all its tests taken together; None: no test ran.

    A test that failed has failed, even if its teardown broke, too.
    """
    kinds: set[Kind] = set()
    messages: dict[Kind, list[str]] = {kind: [] for kind in _WORST}
    seconds = 0.0
    for line in lines:
        report = json.loads(line)
        if report["$report_type"] != "TestReport":
            continue
        seconds += report["duration"]
        kind = _kind(report)
        kinds.add(kind)
        if kind != "passed":
            messages[kind].append(_message(report["longrepr"]))
    for worst in _WORST:
        if worst in kinds:
            return Outcome(worst, tuple(messages[worst]), round(seconds, 1))
    return None


def _kind(report: Mapping[str, Any]) -> Kind:
    if report["outcome"] == "failed":
        return "failed" if report["when"] == "call" else "error"
    return "skipped" if report["outcome"] == "skipped" else "passed"


def _message(shown: Any) -> str:
    """The messages of an exception and of those it was raised from, the first one first.

    `shown` is a report's `longrepr`: a text, (path, line, reason) of a skipped test, or a
    traceback. A traceback's frames are left out: they show the source of the test, which may
    well hold the words that a mutant's `Says:` looks for.
    """
    if isinstance(shown, str):
        return shown
    if isinstance(shown, list):
        return str(shown[-1]).removeprefix("Skipped: ")
    crashes = [crash for _, crash, _ in shown.get("chain") or [(None, shown["reprcrash"], None)]]
    text = "\n".join(crash["message"] for crash in crashes if crash)
    return "\n".join(line.strip() for line in text.splitlines())


def diff_digest(patch: Path) -> str:
    """SHA-256 of a patch's diff, without the text above it."""
    text = patch.read_text(errors="replace")
    starts = [at for mark in ("\ndiff ", "\n--- a/") if (at := text.find(mark)) >= 0]
    return hashlib.sha256(text[min(starts, default=0) :].encode()).hexdigest()


def _read(entry: Path) -> Outcome:
    kept = json.loads((entry / "outcome.json").read_text())
    return Outcome(kept["kind"], tuple(kept["messages"]), kept["seconds"])
