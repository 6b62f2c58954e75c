"""`emu coverage`: the tests that load drivers, run on drivers with counters.

What each reached is kept in the cache's store `coverage`; a test whose record is of the same
inputs (emu.suite.test_inputs.of_coverage) is not run again.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu import paths
from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.suite import records
from emu.suite.records import Record
from emu.suite.testruns import PYTEST, interrupt

DEFAULT = ("tests/system", "-m", "drivers")
_PASSED, _FAILED, _INTERRUPTED, _MISUSED, _EMPTY = 0, 1, 2, 4, 5
"""pytest's exit statuses (pytest.ExitCode)."""
_WELL = ("passed", "skipped")


@dataclass(frozen=True)
class Ran:
    """What pytest ran: the chosen tests, and the records of those that did not pass."""

    chosen: tuple[str, ...]
    failed: tuple[Record, ...]


def store(cache: Cache) -> Path:
    """Where records are kept."""
    return cache.store(records.STORE)


def run(cache: Cache, arguments: Sequence[str], jobs: int, *, again: bool = False) -> Ran:
    """Run the tests that pytest's arguments choose, but for those whose record is current.

    pytest inherits this process's output. `again`: forget all records first. Raises InputError
    when it chooses no test on the drivers, RigError when it breaks, KeyboardInterrupt.
    """
    folder = store(cache)
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / records.CHOSEN).unlink()
    parallel = ["-n", str(jobs), "--dist", "worksteal"] if jobs > 1 else []
    command = [
        *PYTEST, "-p", "no:cacheprovider", *parallel,
        "--emu-coverage", str(folder), "--emu-coverage-new", *(arguments or DEFAULT),
    ]  # fmt: skip
    # In a session of its own: Ctrl-C reaches this process, which interrupts pytest.
    process = subprocess.Popen(command, cwd=paths.checkout(), start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        interrupt([process])
        raise
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    chosen = records.read_chosen(folder)
    if status == _MISUSED or (status == _EMPTY and not chosen):
        raise InputError("pytest chose no test on the drivers")
    if status not in (_PASSED, _FAILED, _EMPTY):
        raise RigError(f"pytest ended with status {status}")
    there = (records.read(records.place(folder, test)) for test in chosen)
    failed = tuple(one for one in there if one is not None and one.outcome not in _WELL)
    return Ran(tuple(chosen), failed)
