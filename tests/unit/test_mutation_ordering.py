"""Mutants made by machine: which tests judge one, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from small_driver import FILE, TEXT, all_of, candidate

from emu.suite.coverage import Coverage
from emu.suite.gcov import FileCounts
from emu.suite.mutation.ordering import History, Reaching, ordered, within
from emu.suite.mutation.reach import Covered
from emu.suite.mutation.source import Source
from emu.suite.records import FileOutline, Outline, Reached, Record

# -- the order of tests


def names(tests: Sequence[Reaching]) -> list[str]:
    return [one.node for one in tests]


def test_quick_tests_that_reach_little_come_first() -> None:
    tests = [
        Reaching("t.py::slow", 20.0, 0.1),
        Reaching("t.py::quick", 2.0, 0.1),
        Reaching("t.py::of_everything", 2.0, 0.9),
    ]
    found = ordered(tests, candidate(), History())
    assert names(found) == ["t.py::quick", "t.py::of_everything", "t.py::slow"]


def test_tests_that_reach_what_few_others_do_come_first() -> None:
    tests = [Reaching("t.py::usual", 2.0, 0.5, 0.1), Reaching("t.py::rare", 2.2, 0.5, 1.0)]
    assert names(ordered(tests, candidate(), History())) == ["t.py::rare", "t.py::usual"]


def test_tests_that_reach_the_same_do_not_crowd_out_others() -> None:
    alike: dict[object, float] = {"a": 1.0, "b": 1.0}
    tests = [Reaching(f"t.py::like{n}", 1.0, 0.3, 0.5, alike) for n in range(4)]
    other = Reaching("t.py::other", 2.0, 0.3, 0.5, {"c": 0.5})
    found = names(ordered([*tests, other], candidate(), History()))
    assert found.index("t.py::other") == 1, found


def test_tests_that_noticed_others_come_earlier() -> None:
    history = History()
    tests = [Reaching(f"t.py::t{n}", 2.0 + n / 10, 0.3) for n in range(4)]
    assert names(ordered(tests, candidate(), history))[0] == "t.py::t0"
    history.add(candidate(), ["t.py::t0", "t.py::t1"], ["t.py::t3"])
    assert names(ordered(tests, candidate(), history)) == [
        "t.py::t3",
        "t.py::t2",
        "t.py::t0",
        "t.py::t1",
    ]
    elsewhere = next(one for one in all_of() if one.function == "other")
    assert history.chance(tests[3], candidate()) > history.chance(tests[3], elsewhere)
    assert history.chance(tests[3], elsewhere) > history.chance(tests[2], elsewhere)


def test_tests_that_differ_in_a_parameter_do_not_crowd_out_others() -> None:
    tests = [Reaching(f"t.py::many[{n}]", 1.0, 0.3) for n in range(6)]
    found = names(ordered([*tests, Reaching("t.py::another", 3.0, 0.3)], candidate(), History()))
    assert found.index("t.py::another") <= 2


def test_tests_fit_into_the_time() -> None:
    tests = [Reaching(f"t.py::t{n}", 4.5) for n in range(10)]
    assert len(within(tests, 25.0)) == 5
    assert len(within(tests, 25.0, spent=15.0)) == 2
    assert within(tests, 25.0, spent=24.0) == ()
    assert len(within(tests, 1.0)) == 1, "a test that alone takes longer is run all the same"


# -- which tests reach a line


def covered(text: str, counted: Sequence[int] = (3, 5, 6, 11), **reached: Sequence[int]) -> Covered:
    """Coverage of a source in which these lines have counters."""
    lines, code = tuple(text.splitlines()), frozenset(counted)
    functions = {"one_of": (1, 7), "other": (9, 12)}
    outline = Outline("b", "now", {"xen-blkfront.c": FileOutline(lines, code, {}, functions)})
    records = []
    for name, its in reached.items():
        counts = FileCounts(dict.fromkeys(its, 1), {})
        part = Reached("b", "now", {"xen-blkfront.c": counts})
        records.append(Record(f"t.py::{name}", "passed", 1.0, "i", (part,)))
    return Covered(Coverage(outline, records))


def test_tests_of_a_line() -> None:
    reach = covered(TEXT, both=(3, 5, 11), first=(3,))
    by_line = {one.line: reach.tests_of(one) for one in all_of()}
    assert {line: names(its) for line, its in by_line.items()} == {
        3: ["t.py::both", "t.py::first"],
        4: ["t.py::both", "t.py::first"],  # no counter: that of the line before
        5: ["t.py::both"],
        6: [],
        11: ["t.py::both"],
    }
    assert [one.share for one in by_line[3]] == [0.75, 0.25]
    assert [one.rare for one in by_line[3]] == [1.0, pytest.approx(0.5 / 1.5)]


def test_tests_of_a_line_that_has_moved() -> None:
    reach = covered(TEXT, one=(3, 5, 11))
    later = TEXT.replace("\tg(a);\n", "\tk(a);\n\tg(a);\n").replace("h(b)", "h(c)")
    by_line = {one.line: names(reach.tests_of(one)) for one in all_of(later)}
    assert by_line[6] == ["t.py::one"], "the line that was the fifth"
    assert by_line[5] == [], "a new line"
    assert by_line[12] == [], "a line that has changed"
    assert reach.is_of(Source(FILE, TEXT.encode()))
    assert not reach.is_of(Source(FILE, later.encode()))


def test_line_without_a_counter_is_that_of_what_is_done_before_it() -> None:
    """Not that of the last line before it, which leaves the function."""
    text = TEXT.replace("\tg(a);\n", "").replace("\tif (a)\n", "\ta = g(a);\n\tif (a)\n")
    reach = covered(text, (3, 4, 5), one=(3, 4, 5), other=(3, 4))
    tests = [names(reach.tests_of(one)) for one in all_of(text) if one.line == 6]
    assert tests == [["t.py::one", "t.py::other"]], text


def test_first_line_of_a_function_is_not_that_of_the_one_before() -> None:
    """Its counter is gone: no other function's test is taken for one that reaches it."""
    reach = covered(TEXT, (3, 5, 6), one=(3, 5, 6))
    assert names(reach.tests_of(next(one for one in all_of() if one.line == 11))) == []
