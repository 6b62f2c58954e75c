"""The whole suite in a row: twenty passes are hours, so a row goes on where it was interrupted.

What is kept is in the cache, under everything that a pass depends on in the checkout and under
pytest's arguments: after a change another row begins. A pass that fails ends its row.
"""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from emu.errors import InputError, RigError
from emu.images.cache import Cache, key_of
from emu.images.manifest import JSON
from emu.suite.testruns import PYTEST, digest, interrupt

_STORE = "passes"
_FOLDERS = ("emu", "tests", "guest-images", "qemu-patches")
_APART = "tests/mutants"
"""Patches that no pass applies."""
_PASSED, _FAILED, _INTERRUPTED, _MISUSED, _EMPTY = 0, 1, 2, 4, 5
"""pytest's exit statuses (pytest.ExitCode)."""


@dataclass(frozen=True)
class Pass:
    """One pass: when it ended (local time, ISO 8601), how many tests passed, and the seconds."""

    ended: str
    tests: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """Passes in a row, the oldest first; `broken`: the next one failed."""

    passes: tuple[Pass, ...]
    broken: bool = False


class Passes:
    """The rows of one checkout and one set of pytest's arguments."""

    def __init__(self, cache: Cache, arguments: Sequence[str], checkout: Path) -> None:
        self._cache = cache
        self._arguments = tuple(arguments)
        self._checkout = checkout
        self._file = self._place()

    def _place(self) -> Path:
        artifacts: dict[str, JSON] = {
            "files": digest(_files(self._checkout), self._checkout),
            "arguments": list(self._arguments),
        }
        return self._cache.store(_STORE) / f"{key_of(_STORE, artifacts)}.json"

    def known(self) -> tuple[Pass, ...]:
        """What is kept of the row that goes on."""
        try:
            return tuple(Pass(**one) for one in json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # nobody believes what he can't read
            return ()

    def forget(self) -> None:
        """Begin a new row."""
        self._file.unlink(missing_ok=True)

    def run(self, times: int, told: Callable[[str], None]) -> Row:
        """Run the suite until `times` passes are in a row, or one fails.

        `told` hears what begins; pytest's own output goes where this process's does. Raises
        RigError when pytest broke, InputError when it ran nothing or when the checkout changed
        meanwhile, KeyboardInterrupt.
        """
        while len(done := self.known()) < times:
            told(f"pass {len(done) + 1} of {times}")
            made = self._once()
            if self._place() != self._file:
                raise InputError("the checkout changed while the pass ran: it counts for nothing")
            if made is None:
                self.forget()
                return Row(done, broken=True)
            self._keep((*done, made))
        return Row(done)

    def _keep(self, passes: Sequence[Pass]) -> None:
        # Whole or not at all: these are hours.
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps([asdict(one) for one in passes], indent=1))
        new.replace(self._file)

    def _once(self) -> Pass | None:
        with self._cache.scratch("pass") as place:
            report = place / "report.xml"
            status = self._pytest(["--junitxml", str(report), "-o", "junit_logging=no"])
            if status == _INTERRUPTED:
                raise KeyboardInterrupt
            if status in (_MISUSED, _EMPTY):
                raise InputError("pytest ran no tests")
            if status not in (_PASSED, _FAILED):
                raise RigError(f"pytest ended with status {status}")
            return _counted(report) if status == _PASSED else None

    def _pytest(self, more: Sequence[str]) -> int:
        # In a session of its own: Ctrl-C is for us, who tell it.
        command = [*PYTEST, *self._arguments, *more]
        process = subprocess.Popen(command, cwd=self._checkout, start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            interrupt([process])
            raise


def _counted(report: Path) -> Pass:
    suites = list(ElementTree.parse(report).iter("testsuite"))
    tests = sum(int(s.get("tests", 0)) - int(s.get("skipped", 0)) for s in suites)
    seconds = sum(float(s.get("time", 0)) for s in suites)
    return Pass(datetime.now().isoformat(timespec="seconds"), tests, round(seconds, 1))


def _files(checkout: Path) -> Iterator[Path]:
    """What a pass depends on."""
    yield checkout / "pyproject.toml"
    for folder in _FOLDERS:
        for path in (checkout / folder).rglob("*"):
            compiled = "__pycache__" in path.parts
            if path.is_file() and not compiled and checkout / _APART not in path.parents:
                yield path
