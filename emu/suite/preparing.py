"""`emu prepare`: build what a session of tests needs before its tests run.

pytest collects the tests and writes which stacks they need (emu.pytestplugin.collected). What
these stacks lack is built in order: QEMU, kernels, guest images, drivers, checkpoints. A build
has all processors; checkpoints boot one guest each, several at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emu.emulator import choice as emulator
from emu.emulator.build import PATCHED
from emu.errors import EmuError, InputError
from emu.images import xens
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.guests import get_guests
from emu.images.kernels import get_kernel
from emu.images.manifest import JSON
from emu.images.modules import get_driver
from emu.images.tree_kernel import TreeWish
from emu.progress import Progress
from emu.rig.hosts import pair_key, two_hosts
from emu.stack.stack import kernels_of, prepare, running
from emu.stack.wish import Wish
from emu.suite.testruns import PYTEST

Build = Callable[[BuildContext], object]

_EMPTY = 5
"""pytest's exit status when no test is collected."""
_STORE = "build-times"
_SECONDS = {
    "QEMU": 420.0,
    "kernel cloud": 20.0,
    "kernel debian": 30.0,
    "kernel lab-debug": 900.0,
    "kernel lab-kasan": 900.0,
    "kernel lab": 480.0,
    "kernel /": 600.0,
    "guest images": 20.0,
    "drivers": 25.0,
    "checkpoint of two hosts": 35.0,
    "checkpoint": 20.0,
}
"""Seconds by the beginning of a step's name, on 2 idle cores; for steps not built here before."""
_OTHER = 60.0
"""Seconds of a step that the table does not have."""
_LONG = ("QEMU ", "kernel lab", "kernel /")
"""How the names of steps begin that take minutes."""
_LAST_LINES = 12


@dataclass(frozen=True)
class Need:
    """A stack (or a pair, with `two_hosts`) that `tests` collected tests run on."""

    wish: Wish
    two_hosts: bool
    tests: int


@dataclass(frozen=True)
class Collected:
    """The needs of the collected tests, and the environment that their options stand for."""

    needs: tuple[Need, ...]
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Step:
    """Something to be built, for so many tests, in about so many seconds.

    `find` raises `Missing` unless it is built. `side_by_side`: it takes one processor.
    """

    name: str
    tests: int
    seconds: float
    find: Build
    build: Build
    side_by_side: bool = False

    def __str__(self) -> str:
        tests = f"{self.tests} test{'s' if self.tests > 1 else ''}"
        need = "need" if self.tests > 1 else "needs"
        return f"{tests} {need} {self.name}, not built: {about(self.seconds)}"


class Missing(EmuError):
    """The cache has no such entry."""


@dataclass(frozen=True)
class Lookup(BuildContext):
    """A context that finds what is built, and builds nothing."""

    def entry(
        self,
        kind: str,
        inputs: Mapping[str, JSON],
        build: Callable[[Path], None],
        *,
        room: int = 0,
    ) -> Path:
        """The entry. Raises Missing for one that is not built."""
        found = self.cache.find(kind, inputs)
        if found is None:
            raise Missing(f"{kind} is not built")
        return found


def collect(arguments: Sequence[str], cache: Cache) -> Collected:
    """What pytest would run with these arguments. Raises InputError where it can't collect."""
    with cache.scratch("collected") as place:
        file = place / "wishes.json"
        command = [*PYTEST, "--collect-only", "-qq", f"--emu-wishes={file}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, _EMPTY) or not file.is_file():
            lines = (done.stdout + done.stderr).splitlines()[-_LAST_LINES:]
            raise InputError(f"pytest collects no tests (status {done.returncode})", lines=lines)
        return read(json.loads(file.read_text()))


def read(document: Mapping[str, Any]) -> Collected:
    """What `--emu-wishes` wrote."""
    needs = []
    for one in document["stacks"]:
        needs.append(Need(Wish.of_fields(one["wish"]), one["two_hosts"], one["tests"]))
    return Collected(tuple(needs), document["environ"])


def plan(needs: Sequence[Need], context: BuildContext) -> list[Step]:
    """What is not built yet, in the order in which it has to be."""
    lookup = _lookup(context)
    return [step for step in _steps(needs, _times(context.cache)) if _is_missing(step, lookup)]


def long_builds(needs: Sequence[Need], context: BuildContext) -> list[Step]:
    """The steps of the plan that take minutes; quick to find out, unlike the whole plan."""
    lookup = _lookup(context)
    steps = [step for step in _steps(needs, _times(context.cache)) if step.name.startswith(_LONG)]
    return [step for step in steps if _is_missing(step, lookup)]


def _lookup(context: BuildContext) -> Lookup:
    cache, pinned, patched = context.cache, context.pinned, context.patched
    return Lookup(cache, Progress(), pinned, patched, insist=context.insist)


def _is_missing(step: Step, lookup: Lookup) -> bool:
    try:
        step.find(lookup)
    except Missing:
        return True
    except EmuError:  # can't be had here: the tests that need it report that
        return False
    return False


def _steps(needs: Sequence[Need], times: Mapping[str, float]) -> list[Step]:
    counts: dict[str, int] = {}
    builds: dict[str, tuple[Build, Build, bool]] = {}

    def add(name: str, tests: int, find: Build, build: Build | None = None) -> None:
        counts[name] = counts.get(name, 0) + tests
        builds.setdefault(name, (find, build or find, build is not None))

    for need in needs:
        wish = need.wish
        if wish.qemu in PATCHED:
            add(f"QEMU {wish.qemu}", need.tests, _qemu(wish))
    for need in needs:
        for choice in dict.fromkeys((need.wish.dom0_choice, need.wish.domu_choice)):
            add(f"kernel {choice}", need.tests, _kernel(choice))
    for need in needs:
        names = " and ".join(dict.fromkeys((need.wish.kernel_name, need.wish.domu_kernel_name)))
        for xen in dict.fromkeys((need.wish.xen, need.wish.second_xen or need.wish.xen)):
            of_xen = "" if xen == xens.DEFAULT else f" and Xen {xen}"
            add(f"guest images with {names}{of_xen}", need.tests, _guests(need.wish, xen))
        add(f"drivers for {names}", need.tests, _drivers(need.wish))
    for need in needs:
        pair = " of two hosts" if need.two_hosts else ""
        add(
            f"checkpoint{pair}: {_described(need.wish)}",
            need.tests,
            _find_start(need),
            _start(need),
        )
    return [
        Step(name, counts[name], times.get(name, _estimate(name)), *builds[name]) for name in builds
    ]


def _estimate(name: str) -> float:
    return next((time for begins, time in _SECONDS.items() if name.startswith(begins)), _OTHER)


def _described(wish: Wish) -> str:
    """A stack in a few words, distinct for distinct wishes."""
    domu, default = wish.domu, Wish()
    words = [wish.kernel_name, domu.kind, f"{domu.memory} MiB"]
    words += [f"domU's {wish.domu_kernel_name}"] * (wish.domu_choice != wish.dom0_choice)
    words += [f"{domu.vcpus} vcpus"] * (domu.vcpus > 1)
    words += [f"{domu.grant_frames} grant frames"] * (domu.grant_frames is not None)
    words += [domu.kernel_options] * bool(domu.kernel_options)
    for name, value in vars(wish.dom0).items():
        words += [f"dom0's {name} {value}"] * (value != getattr(default.dom0, name))
    words += [f"Xen {wish.xen}"] * (wish.xen != default.xen)
    words += [f"second host's Xen {wish.second_xen}"] * (wish.second_xen is not None)
    plain = {
        "kernel",
        "domu_kernel",
        "tree",
        "domu_tree",
        "xen",
        "second_xen",
        "domu",
        "dom0",
        "record",
    }
    plain |= {"cold"}
    for field, value in vars(wish).items():
        if field not in plain and value != getattr(default, field):
            words.append(f"{field} {value}")
    return ", ".join(words)


def _qemu(wish: Wish) -> Build:
    return lambda context: emulator.program(wish.qemu, context)


def _kernel(choice: str | TreeWish) -> Build:
    return lambda context: get_kernel(choice, context)


def _guests(wish: Wish, xen: str) -> Build:
    def build(context: BuildContext) -> None:
        kernel, domu_kernel = kernels_of(wish, context)
        get_guests(xens.find(xen), kernel, context, domu_kernel=domu_kernel)

    return build


def _drivers(wish: Wish) -> Build:
    def build(context: BuildContext) -> None:
        kernel, domu_kernel = kernels_of(wish, context)
        get_driver("back", "patched", kernel, context)
        get_driver("front", "patched", domu_kernel, context)

    return build


def _find_start(need: Need) -> Build:
    def find(context: BuildContext) -> None:
        if need.wish.cold:
            return
        artifacts = prepare(need.wish, context)
        key = pair_key(artifacts) if need.two_hosts else artifacts.checkpoint_key()
        context.entry("checkpoint", key, lambda made: None)

    return find


def _start(need: Need) -> Build:
    def build(context: BuildContext) -> None:
        # A recording belongs to a test; the checkpoint is the same without.
        artifacts = replace(prepare(need.wish, context), wish=replace(need.wish, record=False))
        with two_hosts(artifacts, context) if need.two_hosts else running(artifacts, context):
            pass

    return build


def estimate(steps: Sequence[Step], jobs: int) -> float:
    """Seconds that building these takes, with so many checkpoints at once."""
    alone = sum(step.seconds for step in steps if not step.side_by_side)
    together = [step.seconds for step in steps if step.side_by_side]
    return alone + (max(sum(together) / jobs, *together) if together else 0.0)


def about(seconds: float) -> str:
    """An estimate in words: "about 20 s", "about 8 min"."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {math.ceil(seconds / 60)} min"


def perform(steps: Sequence[Step], context: BuildContext, jobs: int) -> None:
    """Build them. Raises what a build raises; a checkpoint that can't be made is noted, since
    the tests that need it report that.
    """
    alone = [step for step in steps if not step.side_by_side]
    for number, step in enumerate(alone, 1):
        what = f"{number} of {len(steps)}: {step.name} ({about(step.seconds)})"
        with context.progress.stage(what):
            _build(step, context)
    together = [step for step in steps if step.side_by_side]
    if together:
        with context.progress.stage(f"{len(together)} checkpoints, {jobs} at once"):
            _build_together(together, context, jobs)


def _build_together(steps: Sequence[Step], context: BuildContext, jobs: int) -> None:
    quiet = replace(context, progress=Progress())  # a screen has one line
    with ThreadPoolExecutor(jobs) as pool:
        building = {pool.submit(_build, step, quiet): step for step in steps}
        try:
            while building:
                ended, _ = wait(building, return_when=FIRST_COMPLETED)
                for future in ended:
                    step = building.pop(future)
                    if isinstance(error := future.exception(), EmuError):
                        context.progress.note(f"{step.name}: {error}")
                    else:
                        future.result()
                    done = len(steps) - len(building)
                    context.progress.tick(step.name, done, len(steps))
        except BaseException:
            context.progress.note("waiting for the guests that boot")
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _build(step: Step, context: BuildContext) -> None:
    began = time.monotonic()
    step.build(context)
    _remember(context.cache, step.name, time.monotonic() - began)


def _times(cache: Cache) -> dict[str, float]:
    """How long steps took on this machine when they were built last, in seconds."""
    try:
        times = json.loads((cache.store(_STORE) / "seconds.json").read_text())
        return {str(name): float(seconds) for name, seconds in times.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember(cache: Cache, name: str, seconds: float) -> None:
    file = cache.store(_STORE) / "seconds.json"
    with cache.lock(_STORE, "it notes how long a build took", Progress()):
        times = {**_times(cache), name: round(seconds, 1)}
        with contextlib.suppress(OSError):
            new = file.with_suffix(".new")
            new.write_text(json.dumps(times, indent=1))
            new.replace(file)
