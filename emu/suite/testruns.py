"""One test of ours under pytest, in a process of its own, and what became of it.

The outcome is read from pytest's JUnit report and kept in the cache under everything it
depends on, but for errors of the rig, which tell nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from emu import paths
from emu.errors import EmuError, RigError
from emu.images.cache import Cache
from emu.images.manifest import JSON
from emu.progress import Progress

Kind = Literal["passed", "failed", "skipped", "error"]
_WORST: tuple[Kind, ...] = ("failed", "error", "skipped", "passed")
_KIND = "test-outcome"
_RECIPE = 2
"""Raised when the way a test is run changes its outcome; a part of cache keys."""
_SAID = re.compile(r"E(\s|$)")
"""The lines of a traceback in which the exception speaks."""
_ENDS_WITHIN = 60.0
"""Seconds that an interrupted pytest has for ending its guests; then it is killed."""
PYTEST = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    # Who was started in the background ignores it, and so would pytest.
    *("env", "--default-signal=INT"),
    *(sys.executable, "-m", "pytest"),
)
"""pytest as a child that ends with us, and on SIGINT."""
_LAST_LINES = 12
_ONLY_DRAW = ("mutants.py", "passes.py", "screen.py", "testruns.py")


@dataclass(frozen=True)
class Outcome:
    """What became of a test: pytest's word, the messages of what was not passed, seconds."""

    kind: Kind
    messages: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A test by its pytest id, on drivers that have `patch` more; None: on the series."""

    node: str
    patch: Path | None = None

    @property
    def file(self) -> Path:
        """Where it is written."""
        return paths.checkout() / self.node.partition("::")[0]


class Runs:
    """Runs tests, each once: what is known is in the cache. Any thread may ask."""

    def __init__(self, cache: Cache, *, again: bool = False) -> None:
        self._cache = cache
        self._again = again
        self._rig = digest(_rig_files())
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def known(self, test: Trial) -> Outcome | None:
        """The outcome that is kept; None if there is none, or it is not to be believed."""
        if self._again:
            return None
        found = self._cache.find(_KIND, self._inputs(test))
        return None if found is None else _read(found)

    def outcome(self, test: Trial, progress: Progress) -> Outcome:
        """Run it, unless its outcome is known."""
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
        """End what runs, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        interrupt(running)

    def _inputs(self, test: Trial) -> dict[str, JSON]:
        return {
            "test": test.node,
            "patch": "" if test.patch is None else diff_digest(test.patch),
            "tests": digest([test.file, *_shared_files()]),
            "rig": self._rig,
            "recipe": _RECIPE,
        }

    def _run(self, test: Trial) -> Outcome:
        with self._cache.scratch("test-run") as place:
            report, log = place / "report.xml", place / "log"
            command = [
                *PYTEST, "--quiet", "-p", "no:cacheprovider",
                "--junitxml", str(report), "-o", "junit_logging=no",
            ]  # fmt: skip
            if test.patch is not None:
                command += ["--emu-driver-patches", str(test.patch)]
            with log.open("wb") as output, self._started([*command, test.node], output) as process:
                status = process.wait()
            said = log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
            if self._stopped:
                raise RigError("interrupted")
            if not report.is_file():
                raise RigError(f"pytest ended with status {status}: {test.node}", lines=said)
            outcome = read_report(report.read_text("utf-8"))
            if outcome is None:
                raise RigError(f"pytest did not run {test.node}", lines=said)
            return outcome

    @contextlib.contextmanager
    def _started(self, command: list[str], output: object) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._stopped:
                raise RigError("interrupted")
            # In a session of its own: Ctrl-C is for us, who tell it.
            process = subprocess.Popen(
                command, cwd=paths.checkout(), stdin=subprocess.DEVNULL, start_new_session=True,
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


def read_report(xml: str) -> Outcome | None:
    """The outcome in a JUnit report of pytest, all its cases taken together; None: no case ran.

    What failed has failed, even where its end broke, too.
    """
    kinds: set[Kind] = set()
    messages: dict[Kind, list[str]] = {kind: [] for kind in _WORST}
    seconds = 0.0
    for case in ElementTree.fromstring(xml).iter("testcase"):
        seconds += float(case.get("time", 0))
        kind: Kind = "passed"
        for tag, called in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            for part in case.findall(tag):
                found: Kind = called  # type: ignore[assignment]
                messages[found].append(_message(part))
                kind = found if kind == "passed" else kind
        kinds.add(kind)
    for worst in _WORST:
        if worst in kinds:
            return Outcome(worst, tuple(messages[worst]), round(seconds, 1))
    return None


def _message(part: ElementTree.Element) -> str:
    """What an exception said: pytest cuts the attribute after a few lines. The text beside it
    has all, and the source of the test, which may well hold the words that it did not say.
    """
    said = [line[1:].strip() for line in (part.text or "").splitlines() if _SAID.match(line)]
    return "\n".join(said) or part.get("message", "")


def diff_digest(patch: Path) -> str:
    """A patch's change, whatever is said above it."""
    text = patch.read_text(errors="replace")
    starts = [at for mark in ("\ndiff ", "\n--- a/") if (at := text.find(mark)) >= 0]
    return hashlib.sha256(text[min(starts, default=0) :].encode()).hexdigest()


def digest(files: Iterable[Path], top: Path | None = None) -> str:
    """Names and contents of files of a checkout (None: this one)."""
    top = top or paths.checkout()
    found = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(top)} {content}\n".encode())
    return found.hexdigest()


def _rig_files() -> Iterator[Path]:
    """What an outcome depends on beside the test: all but what only counts and draws."""
    top = paths.checkout()
    yield top / "pyproject.toml"
    for path in (top / "emu").rglob("*.py"):
        if "commands" not in path.parts and path.name not in _ONLY_DRAW:
            yield path
    yield from (path for path in paths.guest_images().rglob("*") if path.is_file())


def _shared_files() -> Iterator[Path]:
    """What tests share: all below tests/ but the tests themselves and the mutants."""
    top = paths.checkout() / "tests"
    for path in top.rglob("*"):
        elsewhere = path.relative_to(top).parts[0] in ("unit", "mutants")
        a_test = path.name.startswith("test_") or path.suffix == ".pyc"
        if path.is_file() and not elsewhere and not a_test:
            yield path


def _read(entry: Path) -> Outcome:
    kept = json.loads((entry / "outcome.json").read_text())
    return Outcome(kept["kind"], tuple(kept["messages"]), kept["seconds"])
