"""`emu bench`: speed and size of the rig on this machine, against its targets."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.kernel_specs import full_name
from emu.images.manifest import usage
from emu.images.replaced import lock_in_use
from emu.lab import store, turnaround
from emu.machine.identity import host_cpu
from emu.progress import Progress
from emu.stack.stack import Artifacts, prepare, running
from emu.stack.wish import Wish

MB = 1_000_000
REPEATS = 5
COLD_REPEATS = 1
_FRESH_LIMIT = 3600.0


@dataclass(frozen=True)
class Target:
    """A target on two cores under TCG; `unit` is s, or MB (10^6 bytes)."""

    name: str
    what: str
    wanted: float
    unit: str


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("dom0_s", "checkpoint → dom0 answers", 0.6, "s"),
        Target("domu_s", "checkpoint → domU answers", 1.0, "s"),
        Target("test_s", "overhead of a test: start, first command, end", 2.0, "s"),
        Target("rebuilt_s", "a changed source → both drivers loaded", 15.0, "s"),
        Target("tree_s", "a changed driver of a tree → both loaded", 15.0, "s"),
        Target("cold_debian_s", "cold boot → domU answers, debian kernel", 45.0, "s"),
        Target("cold_lab_s", "cold boot → domU answers, lab kernel", 25.0, "s"),
        Target("checkpoint_mb", "one checkpoint on disk", 600.0, "MB"),
        Target("host_mb", "memory of one more host side by side", 200.0, "MB"),
        Target("fresh_s", "first `emu run` with an empty cache", 360.0, "s"),
    )
}


@dataclass(frozen=True)
class Result:
    """What was measured for a target; `note` says why there are no values."""

    target: Target
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float | None:
        """The value that is compared with the target."""
        return statistics.median(self.values) if self.values else None

    @property
    def held(self) -> bool | None:
        """Whether the target is met; None when nothing was measured."""
        return None if self.median is None else self.median <= self.target.wanted


@dataclass(frozen=True)
class Setting:
    """Where and when it was measured. `load` is that of the last minute."""

    date: str
    cores: int
    cpu: str
    accel: str
    load: float
    memory_gib: float


@dataclass(frozen=True)
class BenchReport:
    """All results of one bench."""

    setting: Setting
    results: tuple[Result, ...]

    @property
    def held(self) -> bool:
        """Whether no target was missed."""
        return all(result.held is not False for result in self.results)


@dataclass
class _Measured:
    values: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def result(self, target: Target) -> Result:
        values, note = self.values.get(target.name, []), self.notes.get(target.name, "")
        return Result(target, tuple(values), note)


@dataclass(frozen=True)
class BenchWish:
    """What to measure: `lab` builds the lab kernel if missing, `fresh` runs with an empty cache.

    `tree` is the path of a kernel tree; without one its target is not measured.
    """

    stack: Wish = field(default_factory=Wish)
    repeats: int = REPEATS
    cold_repeats: int = COLD_REPEATS
    lab: bool = False
    fresh: bool = False
    tree: str | None = None


def perform(wish: BenchWish, context: BuildContext) -> BenchReport:
    """Measure one after the other. Raises as a run does."""
    load = os.getloadavg()[0]
    measured = _Measured()
    with context.progress.stage("preparing"):
        artifacts = prepare(wish.stack, context)
        with running(artifacts, context):
            pass  # makes the checkpoint if missing, and reads it into the page cache
    _starts(artifacts, wish.repeats, measured, context)
    with context.progress.stage("building both drivers of a changed source"):
        measured.add("rebuilt_s", turnaround.measure(artifacts, context))
    _tree(wish, measured, context)
    _checkpoint_size(artifacts, measured, context.cache)
    _side_by_side(artifacts, measured, context)
    _cold("cold_debian_s", artifacts, wish.cold_repeats, measured, context)
    if wish.lab or _lab_is_built(context.cache):
        lab = prepare(replace(wish.stack, kernel="lab"), context)
        _cold("cold_lab_s", lab, wish.cold_repeats, measured, context)
    else:
        measured.notes["cold_lab_s"] = "the lab kernel is not built; --lab builds it"
    if wish.fresh:
        _fresh(measured, context.progress)
    else:
        measured.notes["fresh_s"] = "not requested; --fresh measures it"
    setting = Setting(
        date=time.strftime("%Y-%m-%d"),
        cores=len(os.sched_getaffinity(0)),
        cpu=host_cpu(),
        accel=str(artifacts.accel),
        load=load,
        memory_gib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30),
    )
    return BenchReport(setting, tuple(measured.result(target) for target in TARGETS.values()))


def _starts(artifacts: Artifacts, repeats: int, measured: _Measured, context: BuildContext) -> None:
    with context.progress.stage(f"starting from the checkpoint, {repeats} times"):
        for number in range(repeats):
            context.progress.tick("start", number, repeats)
            began = time.monotonic()
            with running(artifacts, context) as stack:
                _answers(stack.domain.channel.run(["echo", "here"], timeout=10).text)
                measured.add("dom0_s", stack.dom0_s)
                measured.add("domu_s", stack.start_s)
                stack.machine.watch.settle()  # as after every test
            measured.add("test_s", time.monotonic() - began)


def _tree(wish: BenchWish, measured: _Measured, context: BuildContext) -> None:
    if wish.tree is None:
        measured.notes["tree_s"] = "no tree; --tree names one"
        return
    with context.progress.stage(f"building both drivers of {wish.tree}, changed"):
        artifacts = prepare(replace(wish.stack, tree=wish.tree), context)
        with running(artifacts, context):
            pass
        measured.add("tree_s", turnaround.measure_tree(artifacts, context))


def _answers(text: str) -> None:
    if text != "here\n":
        raise RigError(f"the domU answered {text!r}")


def _checkpoint_size(artifacts: Artifacts, measured: _Measured, cache: Cache) -> None:
    entry = cache.find("checkpoint", artifacts.checkpoint_key())
    if entry is None:
        raise RigError("the checkpoint was removed while it was measured")
    measured.add("checkpoint_mb", usage(entry) / MB)


def _side_by_side(artifacts: Artifacts, measured: _Measured, context: BuildContext) -> None:
    with (
        context.progress.stage("two hosts side by side"),
        running(artifacts, context),
        running(artifacts, context) as second,
    ):
        _answers(second.domain.channel.run(["echo", "here"], timeout=10).text)
        memory = read_rollup(Path(f"/proc/{second.machine.pid}/smaps_rollup").read_text())
    own = memory["Private_Clean"] + memory["Private_Dirty"]
    measured.add("host_mb", own / MB)
    measured.notes["host_mb"] = (
        f"private to the second QEMU; with its share of what both map {memory['Pss'] / MB:.0f} MB"
    )


def read_rollup(text: str) -> dict[str, int]:
    """The sums in /proc/<pid>/smaps_rollup, in bytes (proc(5))."""
    found = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) << 10
    return found


def _cold(
    name: str, artifacts: Artifacts, repeats: int, measured: _Measured, context: BuildContext
) -> None:
    cold = replace(artifacts, wish=replace(artifacts.wish, cold=True))
    for _ in range(repeats):
        with running(cold, context) as stack:
            measured.add(name, stack.start_s)


def _lab_is_built(cache: Cache) -> bool:
    name = full_name("lab")
    return any(
        image.kind == "kernel-lab" and image.name == name
        for image in store.images(cache, lock_in_use(cache))
    )


def _fresh(measured: _Measured, progress: Progress) -> None:
    """Run `emu run` with an empty cache; needs the network."""
    with progress.stage("a first run with an empty cache"), _empty_cache() as empty:
        began = time.monotonic()
        command = [sys.executable, "-m", "emu.cli", "run", "--json"]
        environ = {**os.environ, "XDG_CACHE_HOME": str(empty)}
        try:
            done = subprocess.run(
                command, env=environ, capture_output=True, text=True, timeout=_FRESH_LIMIT
            )
        except subprocess.TimeoutExpired as late:
            raise RigError(f"a first run took more than {_FRESH_LIMIT:.0f} s") from late
        took = time.monotonic() - began
    if done.returncode:
        raise RigError(
            "a first run with an empty cache failed", lines=done.stderr.splitlines()[-8:]
        )
    measured.add("fresh_s", took)


@contextlib.contextmanager
def _empty_cache() -> Iterator[Path]:
    # Beside the cache: on the same disk.
    beside = Cache().root.parent
    free = shutil.disk_usage(beside).free
    if free < 4 << 30:
        raise InputError(f"a first run needs 4 GiB in {beside}, {free / (1 << 30):.1f} are left")
    with tempfile.TemporaryDirectory(prefix="emu-bench-", dir=beside) as folder:
        yield Path(folder)


def as_json(report: BenchReport) -> dict[str, Any]:
    """As JSON; seconds, and MB of 10^6 bytes."""
    return {
        "held": report.held,
        "setting": vars(report.setting),
        "results": {
            result.target.name: {
                "what": result.target.what,
                "unit": result.target.unit,
                "wanted": result.target.wanted,
                "median": result.median,
                "values": list(result.values),
                "held": result.held,
                "note": result.note,
            }
            for result in report.results
        },
    }


def lines(report: BenchReport) -> list[str]:
    """As text: where and when, then a line for each target."""
    where = report.setting
    head = [
        f"{where.date} · {where.cores} cores, {where.cpu}, {where.memory_gib:.0f} GiB · "
        f"load {where.load:.1f} at the start",
        f"accelerator {where.accel}",
        "",
    ]
    return head + [_line(result) for result in report.results]


def _line(result: Result) -> str:
    target = result.target
    verdict = {True: "ok", False: "MISSED", None: "–"}[result.held]
    wanted = f"wanted {_figure(target.wanted, target.unit)}"
    if result.median is None:
        return f"{verdict:<7} {target.what:<42} {'not measured':>12}   {wanted}; {result.note}"
    text = f"{verdict:<7} {target.what:<42} {_figure(result.median, target.unit):>12}   {wanted}"
    return "; ".join([text, *_spread(result.values, target.unit), *filter(None, [result.note])])


def _spread(values: Sequence[float], unit: str) -> list[str]:
    if len(values) < 2:
        return []
    low, high = _figure(min(values), unit), _figure(max(values), unit)
    return [f"median of {len(values)}, {low} to {high}"]


def _figure(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}" if unit == "s" and value < 10 else f"{value:.0f} {unit}"
