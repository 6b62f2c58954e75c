"""Mutants made by machine, for once on real drivers: made, compiled, noticed by a real test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.driver_recipe import recipe_for
from emu.images.kernels import get_kernel
from emu.suite.mutants import KERNEL
from emu.suite.mutation.candidates import Candidate
from emu.suite.mutation.compiling import Compiler, Kind
from emu.suite.mutation.judge import Judge, Verdict
from emu.suite.mutation.reach import Named
from emu.suite.mutation.survey import all_candidates
from emu.suite.mutation.trials import Trials

TEST = "tests/system/negotiation/test_series_shown.py::test_ends_agree[1]"

pytestmark = pytest.mark.timeout(300)  # three builds, two pytests


@pytest.fixture(scope="module")
def made(context: BuildContext) -> list[Candidate]:
    return all_candidates(context)


def one_of(made: list[Candidate], function: str, operator: str, text: str = "") -> Candidate:
    found = [one for one in made if (one.function, one.operator) == (function, operator)]
    return next(one for one in found if text in one.old)


def test_every_function_has_candidates(made: list[Candidate]) -> None:
    ends = Counter(one.end for one in made)
    assert min(ends["front"], ends["back"]) > 1500, ends
    assert len({one.id for one in made}) == len(made), "two candidates have one name"
    for function in ("blkif_queue_rw_req", "dispatch_rw_block_io", "frontend_changed"):
        assert sum(one.function == function for one in made) > 20, function


def test_the_compiler_tells_mutants_from_what_is_none(
    made: list[Candidate], context: BuildContext
) -> None:
    kernel = get_kernel(KERNEL, context)
    order = [
        one_of(made, "xlblk_init", "arguments swapped"),  # of other types
        one_of(made, "xen_translate_vdev", "arithmetic", "+"),  # what is added is 0
        one_of(made, "blkfront_connect", "condition negated"),
        one_of(made, "xen_blkbk_probe", "condition false"),
    ]
    sources = list({one.file: one.source for one in made}.values())
    compiler = Compiler(recipe_for(kernel, context), kernel, sources, context)
    chosen, kinds = compiler.choose(order, 2, 1)
    assert chosen == order[2:]
    assert [kinds[one.id] for one in order[:2]] == [Kind.REFUSED, Kind.SAME], kinds


def test_a_mutant_is_noticed_and_its_outcome_kept(
    made: list[Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Cache(tmp_path / "cache")
    candidate = one_of(made, "blkfront_read_disk", "assignment left out", "xenbus_gather")
    for _ in range(2):
        judge = Judge(Named([TEST]), Trials(own), own, 60.0)
        found = judge.judge(candidate)
        assert (found.verdict, found.test) == (Verdict.KILLED, TEST), found
        assert "did not connect" in found.line
        assert not judge.unfit
        monkeypatch.setattr(Trials, "run", lambda *_: pytest.fail("was run again"))
    patch = own.store("mutants") / "patches" / f"{candidate.id}.patch"
    assert patch.read_text() == candidate.patch
