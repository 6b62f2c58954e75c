"""`emu mutants --sample`: a random sample of the drivers' mutants, and how many are noticed.

The score is the share of those noticed by a test, of all in the sample that are not equivalent.
"""

from __future__ import annotations

import fnmatch
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from emu.errors import InputError
from emu.images.context import BuildContext
from emu.images.driver_recipe import apply_all, recipe_for
from emu.images.kernels import get_kernel
from emu.images.patched import End
from emu.suite.mutants import KERNEL, own_mutants
from emu.suite.mutation import equivalents
from emu.suite.mutation.candidates import Candidate, candidates, in_random_order
from emu.suite.mutation.compiling import Compiler, Kind
from emu.suite.mutation.judge import Judge, Judged, Verdict
from emu.suite.mutation.reach import Reach
from emu.suite.mutation.source import read_sources
from emu.suite.mutation.trials import Trials

LIMIT = 150.0
"""Seconds of tests for one mutant."""


@dataclass(frozen=True)
class SampleWish:
    """How many mutants, in which order, of which ends; of these only the ones that are named.

    A name is an id, a function, `file:function`, or a pattern of them. `limit` is in seconds of
    tests for one mutant; `again` ignores kept outcomes.
    """

    count: int
    seed: int
    ends: Collection[End] = ("front", "back")
    names: tuple[str, ...] = ()
    jobs: int = 1
    again: bool = False
    limit: float = LIMIT


@dataclass(frozen=True)
class Sample:
    """The chosen mutants; `kinds` counts what the compiler made of those looked at for them.

    `candidates` are all there are, `covered` how many of these a test reaches; `stale` says what
    is no longer true of equivalent.toml.
    """

    chosen: tuple[Candidate, ...]
    equivalent: dict[str, str]
    kinds: Counter[Kind]
    candidates: tuple[Candidate, ...] = field(repr=False)
    covered: int
    stale: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """The verdicts on a sample, in its order; seconds; tests that fail without a mutant."""

    sample: Sample
    judged: tuple[Judged, ...]
    seconds: float
    unfit: dict[str, str] = field(default_factory=dict)

    def of(self, *verdicts: Verdict) -> list[Judged]:
        """Those with one of these verdicts."""
        return [one for one in self.judged if one.verdict in verdicts]

    @property
    def counted(self) -> int:
        """How many mutants the score is of: all that are not equivalent."""
        return len(self.judged) - len(self.of(Verdict.EQUIVALENT))

    @property
    def score(self) -> float:
        """The share of mutants that a test noticed, from 0 to 1; 1 if there are none."""
        noticed = len(self.of(Verdict.KILLED, Verdict.HUNG))
        return noticed / self.counted if self.counted else 1.0


def all_candidates(context: BuildContext) -> list[Candidate]:
    """What can be made of the drivers with the series, reached by a test or not."""
    recipe = recipe_for(get_kernel(KERNEL, context), context)
    with context.cache.scratch("mutants") as scratch:
        recipe.copy(scratch, context)
        apply_all(recipe, scratch, context)
        return candidates(read_sources(scratch))


def draw(wish: SampleWish, reach: Reach, context: BuildContext) -> Sample:
    """Draw a sample: the first mutants of a random order of all candidates that tests reach.

    Raises InputError for a name that is not in it, or where candidates do not suffice.
    """
    with context.progress.stage(f"a sample of {wish.count} mutants"):
        found = all_candidates(context)
        # Ordered before those that no test reaches are left out: a test more moves nobody's place.
        order = [one for one in in_random_order(found, wish.seed) if one.end in wish.ends]
        covered = [one for one in order if reach.tests_of(one)]
        kernel = get_kernel(KERNEL, context)
        sources = list({one.file: one.source for one in found}.values())
        compiler = Compiler(recipe_for(kernel, context), kernel, sources, context)
        chosen, kinds = compiler.choose(covered, wish.count, wish.jobs)
    entries = equivalents.read_equivalents(own_mutants() / equivalents.NAME)
    named = [one for one in chosen if not wish.names or _is_named(one, wish.names)]
    for name in wish.names:
        if not any(_is_named(one, (name,)) for one in chosen):
            raise InputError(f"no mutant of the sample is {name}", hint="--list shows them")
    return Sample(
        tuple(named),
        {one.id: one.reason for one in entries},
        Counter(kinds.values()),
        tuple(found),
        len(covered),
        tuple(equivalents.stale(entries, found)),
    )


def _is_named(candidate: Candidate, names: Collection[str]) -> bool:
    full = f"{candidate.short_file}:{candidate.function}"
    its = (candidate.id, candidate.function, full, full.rpartition("/")[2])
    return any(fnmatch.fnmatch(one, name) for one in its for name in names)


def perform(
    wish: SampleWish,
    sample: Sample,
    reach: Reach,
    context: BuildContext,
    report: Callable[[Judged], None],
) -> Survey:
    """Judge the mutants of a sample; `report` is called with each as it is done."""
    began = time.monotonic()
    trials = Trials(context.cache, again=wish.again)
    judge = Judge(reach, trials, context.cache, wish.limit)
    left = [one for one in sample.chosen if one.id not in sample.equivalent]
    done = {
        one.id: Judged(one, Verdict.EQUIVALENT, line=sample.equivalent[one.id])
        for one in sample.chosen
        if one.id in sample.equivalent
    }
    with (
        context.progress.stage(f"{len(left)} mutants"),
        ThreadPoolExecutor(max(1, wish.jobs)) as pool,
    ):
        judge.remember(sample.candidates)
        try:
            running = {pool.submit(judge.judge, one) for one in left}
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    judged = future.result()
                    done[judged.candidate.id] = judged
                    report(judged)
                said = _so_far(done.values(), len(running), time.monotonic() - began)
                context.progress.tick(said, len(left) - len(running), len(left))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            trials.stop()
            raise
    return Survey(
        sample,
        tuple(done[one.id] for one in sample.chosen),
        time.monotonic() - began,
        dict(judge.unfit),
    )


def _so_far(done: Collection[Judged], left: int, seconds: float) -> str:
    """How far a run is, in a line."""
    counts = Counter(one.verdict for one in done)
    words = [f"{counts[one]} {one.value}" for one in Verdict if counts[one]]
    ran = sum(one.seconds > 1 for one in done)
    if ran and left:
        words.append(f"{left} left, about {seconds / ran * left / 60:.0f} min")
    return ", ".join(words)
