"""`emu repeat`: passes of the whole suite in a row. Twenty take hours, so a row can be resumed.

Passes are kept in the cache under what they depend on in the checkout and under pytest's
arguments: after a change another row begins. A pass that fails ends its row.
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
from emu.suite.test_inputs import digest
from emu.suite.testruns import PYTEST, interrupt

_STORE = "passes"
_FOLDERS = ("emu", "tests", "guest-images", "qemu-patches")
_APART = "tests/mutants"
"""Not used by a pass."""
_PASSED, _FAILED, _INTERRUPTED, _MISUSED, _EMPTY = 0, 1, 2, 4, 5
"""pytest's exit statuses (pytest.ExitCode)."""


@dataclass(frozen=True)
class Pass:
    """One pass: when it ended (local time, ISO 8601), how many tests passed, seconds."""

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
        """The passes of the current row."""
        try:
            return tuple(Pass(**one) for one in json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # unreadable: start again
            return ()

    def forget(self) -> None:
        """Begin a new row."""
        self._file.unlink(missing_ok=True)

    def run(self, times: int, report: Callable[[str], None]) -> Row:
        """Run the suite until `times` passes are in a row, or one fails.

        `report` is called as each pass begins; pytest inherits this process's output. Raises
        RigError when pytest breaks, InputError when it runs no tests or the checkout changes
        meanwhile, KeyboardInterrupt.
        """
        while len(done := self.known()) < times:
            report(f"pass {len(done) + 1} of {times}")
            made = self._once()
            if self._place() != self._file:
                raise InputError("the checkout changed while the pass ran: it does not count")
            if made is None:
                self.forget()
                return Row(done, broken=True)
            self._keep((*done, made))
        return Row(done)

    def _keep(self, passes: Sequence[Pass]) -> None:
        # Atomically: these are hours of work.
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps([asdict(one) for one in passes], indent=1))
        new.replace(self._file)

    def _once(self) -> Pass | None:
        with self._cache.scratch("pass") as place:
            junit = place / "report.xml"
            status = self._pytest(["--junitxml", str(junit), "-o", "junit_logging=no"])
            if status == _INTERRUPTED:
                raise KeyboardInterrupt
            if status in (_MISUSED, _EMPTY):
                raise InputError("pytest ran no tests")
            if status not in (_PASSED, _FAILED):
                raise RigError(f"pytest ended with status {status}")
            return _counted(junit) if status == _PASSED else None

    def _pytest(self, more: Sequence[str]) -> int:
        # In a session of its own: Ctrl-C reaches this process, which interrupts pytest.
        command = [*PYTEST, *self._arguments, *more]
        process = subprocess.Popen(command, cwd=self._checkout, start_new_session=True)
        try:
            return process.wait()
        except BaseException:
            interrupt([process])
            raise


def _counted(junit: Path) -> Pass:
    suites = list(ElementTree.parse(junit).iter("testsuite"))
    tests = sum(int(s.get("tests", 0)) - int(s.get("skipped", 0)) for s in suites)
    seconds = sum(float(s.get("time", 0)) for s in suites)
    return Pass(datetime.now().isoformat(timespec="seconds"), tests, round(seconds, 1))


def _files(checkout: Path) -> Iterator[Path]:
    """The files that a pass depends on."""
    yield checkout / "pyproject.toml"
    for folder in _FOLDERS:
        for path in (checkout / folder).rglob("*"):
            compiled = "__pycache__" in path.parts
            if path.is_file() and not compiled and checkout / _APART not in path.parents:
                yield path
