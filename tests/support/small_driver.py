"""A driver of two functions, and the mutants that are made of it."""

from __future__ import annotations

from emu.suite.mutation.candidates import Candidate, candidates
from emu.suite.mutation.source import Source

FILE = "drivers/block/xen-blkfront.c"
TEXT = """\
static int one_of(int a)
{
	if (a)
		return 1;
	g(a);
	return 0;
}

static void other(void)
{
	h(b);
}
"""


def all_of(text: str = TEXT) -> list[Candidate]:
    return candidates([Source(FILE, text.encode())])


def candidate(operator: str = "condition negated", text: str = TEXT) -> Candidate:
    return next(one for one in all_of(text) if one.operator == operator)
