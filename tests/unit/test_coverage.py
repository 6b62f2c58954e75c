"""Coverage of the drivers: counters of guests, gcov, what tests reach together, the reasons."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from emu.errors import InputError, RigError
from emu.images.cache import Cache
from emu.suite import csource, gcov, left_out, records
from emu.suite.coverage import Coverage, TestSeconds, coverage_of, read_coverage
from emu.suite.coverage_share import Share, shares_of, total_of
from emu.suite.gcov import FileCounts
from emu.suite.records import FileOutline, Outline, Reached, Record
from emu.xen.driver_counters import Counted, Function, Unit, parse, total

TRANSCRIPTS = Path(__file__).parent / "transcripts"
DUMP = (TRANSCRIPTS / "counters-dom0.txt").read_text()
"""/proc/emu-gcov of a dom0 after a disk was attached, written to and detached."""

SOURCE = """\
static int limit = 3; /* if (this) were code */

static int __init first_of(struct thing *one,
			int (*more)(void))
{
	if (one->a &&
		one->b)
		return "if (a || b)"[0];
	BUG_ON(one->c || one->d);
	pr_debug("no decision");
	return one->e ? 1 : 2;
}

#define SHOW(name)						\\
static int show_##name(void)					\\
{								\\
	return name;						\\
}
SHOW(limit);

void __second(void)
{
	list_for_each_entry(a, b, c)
		limit++;
	do {
		limit--;
	} while (limit);
}
"""


# -- what a guest shows


def test_a_recorded_dump() -> None:
    counted = parse(DUMP)
    assert re.fullmatch("[0-9a-f]{16}", counted.guest)
    assert [unit.file for unit in counted.units] == ["xenbus.gcda", "blkback.gcda"]
    for unit in counted.units:
        assert gcov.release_of(unit.version) == 12
        assert len({function.identity for function in unit.functions}) == len(unit.functions) > 30
        ran = [function for function in unit.functions if any(function.counters)]
        assert 10 < len(ran) < len(unit.functions), "an attached disk runs part of the driver"


def test_equal_counters_are_written_once() -> None:
    text = "emu-gcov 1 ab\nunit 0x4232322a 0x1 0x2 a.gcda\nfn 0x3 0x4 0x5 7 0*3 12\nend\n"
    assert parse(text).units[0].functions == (Function((3, 4, 5), (7, 0, 0, 0, 12)),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DUMP.rpartition("fn ")[0], "cut off"),
        (DUMP.replace("emu-gcov 1", "emu-gcov 2", 1), "emu-gcov 1"),
        ("", "begins with ''"),
        ("emu-gcov 1 ab\nfn 0x1 0x2 0x3 1\nend\n", "line 2"),
        ("emu-gcov 1 ab\nunit 0x1 0x2 0x3 a\nfn 0x1 0x2 0x3 x\nend\n", "line 3"),
    ],
)
def test_a_dump_that_is_none(text: str, says: str) -> None:
    with pytest.raises(RigError, match=says):
        parse(text)


def counted(guest: str, *counters: int, stamp: int = 1) -> Counted:
    unit = Unit(0x4232322A, stamp, 9, "a.gcda", (Function((1, 2, 3), counters),))
    return Counted(guest, (unit,))


def test_of_one_guest_the_last_dump_counts_and_guests_add_up() -> None:
    (unit,) = total([counted("a", 1, 2), counted("b", 10, 20), counted("a", 3, 4)])
    assert unit.functions[0].counters == (13, 24)


def test_units_of_two_builds_are_kept_apart() -> None:
    found = total([counted("a", 1), counted("b", 5, stamp=2)])
    assert [unit.functions[0].counters for unit in found] == [(1,), (5,)]


# -- gcov

TINY = """\
int main(int count, char **words)
{
	int n, sum = 0;

	for (n = 0; n < count; n++)
		if (words[n][0] == 'x')
			sum++;
	return sum == 7;
}
"""


def libgcov(data: bytes) -> Unit:
    """The unit in a file that libgcov has written."""
    word = struct.Struct("<I")
    words = [value for (value,) in word.iter_unpack(data)]
    magic, version, stamp, checksum = words[:4]
    assert magic == 0x67636461
    at, functions = 4, []
    while at + 1 < len(words) and words[at]:
        tag, length = words[at], words[at + 1] // 4
        body = words[at + 2 : at + 2 + length]
        if tag == 0x01000000:
            functions.append(Function((body[0], body[1], body[2]), ()))
        elif tag == 0x01A10000:
            pairs = struct.pack(f"<{length}I", *body)
            counters = struct.unpack(f"<{length // 2}Q", pairs)
            functions[-1] = Function(functions[-1].identity, counters)
        at += 2 + length
    return Unit(version, stamp, checksum, "tiny.gcda", tuple(functions))


def test_the_file_for_gcov_is_what_libgcov_writes(tmp_path: Path) -> None:
    """gcov says the same of both, lines and branches."""
    if not shutil.which("gcc-12"):
        pytest.skip("the layout of libgcov's file that this test reads is gcc 12's")
    (tmp_path / "tiny.c").write_text(TINY)

    def run(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    run("gcc-12", "-fprofile-arcs", "-ftest-coverage", "-c", "tiny.c")
    run("gcc-12", "--coverage", "tiny.o", "-o", "tiny")
    run("./tiny", "x1", "y1", "x2")
    shown = ["gcov-12", "--json-format", "--branch-probabilities", "--stdout", "tiny.gcda"]
    expected = json.loads(run(*shown))
    unit = libgcov((tmp_path / "tiny.gcda").read_bytes())
    (tmp_path / "tiny.gcda").write_bytes(gcov.data_file(unit))
    assert json.loads(run(*shown))["files"] == expected["files"]
    lines = {line["line_number"]: line["count"] for line in expected["files"][0]["lines"]}
    assert lines[7] == 2, "the words that begin with x"


def test_notes_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.gcno").write_bytes(b"gcdaxxxxyyyy")
    with pytest.raises(RigError, match="no notes of gcc"):
        gcov.stamp_of(tmp_path / "a.gcno")


def test_counters_of_a_build_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RigError, match=r"no build in the cache has the notes for a\.gcda"):
        gcov.build_of(counted("a", 1).units[0], Cache(tmp_path))


def test_counts_are_added() -> None:
    one = FileCounts({1: 2, 2: 1}, {1: (1, 0), 3: (1, 1)})
    other = FileCounts({1: 3, 4: 1}, {1: (0, 2), 3: (1, 1, 1)})
    assert gcov.plus(one, other) == FileCounts({1: 5, 2: 1, 4: 1}, {1: (1, 2), 3: (1, 1, 1)})


# -- as much of C as it takes


def test_functions_of_a_source() -> None:
    found = [(one.name, one.first, one.last) for one in csource.functions(SOURCE)]
    assert found == [("first_of", 3, 12), ("__second", 21, 28)]


def test_lines_that_decide() -> None:
    """Not comments, strings, BUG_ON, pr_debug; every line of a condition."""
    assert csource.deciding_lines(SOURCE) == {6, 7, 11, 23, 27}


def test_a_line_is_in_the_function_of_a_macro() -> None:
    places = csource.Places(SOURCE, {"show_limit": (19, 19), "first_of": (1, 99)})
    found = [place.name if (place := places.at(line)) else None for line in (1, 5, 19, 20, 22)]
    assert found == [None, "first_of", "show_limit", None, "__second"]


# -- together

NAME = "xen-blkfront.c"


def outline(build: str = "b1", branches: Mapping[int, int] | None = None) -> Outline:
    text = tuple(SOURCE.splitlines())
    code = frozenset({6, 7, 8, 9, 11, 23, 24})
    file = FileOutline(text, code, branches or {6: 2, 7: 2, 11: 2}, {"first_of": (3, 12)})
    return Outline(build, "s1", {NAME: file})


def record(
    test: str,
    lines: Mapping[int, int],
    branches: Mapping[int, tuple[int, ...]] | None = None,
    *,
    seconds: float = 1.0,
    build: str = "b1",
    source: str = "s1",
) -> Record:
    reached = Reached(build, source, {NAME: FileCounts(lines, branches or {})})
    return Record(test, "passed", seconds, "inputs", (reached,))


@pytest.fixture
def coverage() -> Coverage:
    slowest = record("two sources", {6: 1}, seconds=99)
    return Coverage(
        outline(),
        [
            record("slow", {6: 3, 7: 1, 8: 1, 99: 1}, {6: (1, 2), 7: (1, 0)}, seconds=9),
            record("quick", {6: 1, 9: 1, 11: 1}, {6: (0, 1), 11: (1, 0)}, seconds=2),
            record("other kernel", {6: 1, 11: 1}, {11: (1, 1, 1, 1)}, seconds=3, build="b2"),
            record("other source", {24: 1}, source="s2"),
            # A test with two kernels.
            replace(slowest, reached=(*slowest.reached, *record("", {24: 1}, source="s2").reached)),
        ],
    )


def test_what_tests_reach_together(coverage: Coverage) -> None:
    assert [one.test for one in coverage.tests] == [
        "quick",
        "other kernel",
        "slow",
        "two sources",
    ]
    assert coverage.covered_lines(NAME) == {6, 7, 8, 9, 11}
    assert coverage.missing_lines(NAME) == [23, 24]
    # The other kernel's macros have other branches: they tell nothing of these.
    assert coverage.missing_branches(NAME) == {7: (1,), 11: (1,)}
    assert coverage.tests_reaching(NAME, 11) == (
        TestSeconds(2, "quick"),
        TestSeconds(3, "other kernel"),
    )
    assert coverage.tests_reaching(NAME, 24) == ()
    share = Share((5, 7), (4, 6), (1, 2))
    assert shares_of(coverage) == {NAME: share}
    assert total_of([share, share]) == Share((10, 14), (8, 12), (2, 4))


def test_the_source_of_most_tests_counts() -> None:
    tests = [record("a", {6: 1}), record("b", {6: 1}), record("c", {6: 1}, source="s2")]
    assert coverage_of([outline()], tests).source == "s1"
    with pytest.raises(InputError, match="no test was run under coverage"):
        coverage_of([outline()], tests, "s2")
    with pytest.raises(InputError, match="no test was run under coverage"):
        coverage_of([], [])


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    one = record("tests/a.py::test_a[x]", {6: 1}, {6: (0, 3)})
    records.write(one, tmp_path)
    records.write(record("tests/a.py::test_b", {7: 1}), tmp_path)
    records.place(tmp_path, "torn").write_text('{"test": "torn", "rea')
    assert [found.test for found in records.read_all(tmp_path)] == [
        "tests/a.py::test_a[x]",
        "tests/a.py::test_b",
    ]
    assert records.read(records.place(tmp_path, one.test)) == one
    assert records.read_chosen(tmp_path) == []
    records.write_chosen(tmp_path, ["x"])
    assert records.read_chosen(tmp_path) == ["x"]


def test_tests_that_the_checkout_has_no_more(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folder = cache.store(records.STORE)
    (folder / "builds").mkdir()
    (folder / "builds" / "b1.json").write_text(json.dumps(records.outline_json(outline())))
    here = "tests/unit/test_coverage.py::test_tests_that_the_checkout_has_no_more[x]"
    gone = ("tests/unit/test_coverage.py::test_gone", "tests/unit/test_gone.py::test_a")
    for test in (here, *gone):
        records.write(record(test, {6: 1}), folder)
    records.write(replace(record(f"{here}[failed]", {7: 1}), outcome="failed"), folder)
    assert [one.test for one in read_coverage(cache).tests] == [here]


# -- reasons


def entries(tmp_path: Path, text: str) -> tuple[left_out.Entry, ...]:
    path = tmp_path / "left-out.toml"
    path.write_text(text)
    return left_out.read(path)


def entry(function: str = "__second", more: str = "", reason: str = "why not") -> str:
    return f'[[left-out]]\nfile = "{NAME}"\nfunction = "{function}"\nreason = "{reason}"\n{more}\n'


def test_reasons_for_what_is_missing(coverage: Coverage, tmp_path: Path) -> None:
    text = entry(more='line = "limit++;"') + entry("first_of", "match = 'return .*:.*'")
    account = left_out.account(coverage, entries(tmp_path, text))
    assert [(one.line, one.branches, one.reason) for one in account.missing] == [
        (7, (1,), None),
        (11, (1,), "why not"),
        (23, (), None),
        (24, (), "why not"),
    ]
    assert account.stale == ()
    assert [one.line for one in account.without_reason()] == [7, 23]


def test_an_entry_for_all_of_a_function(coverage: Coverage, tmp_path: Path) -> None:
    account = left_out.account(coverage, entries(tmp_path, entry()))
    assert [one.line for one in account.without_reason()] == [7, 11]


def test_stale_entries(coverage: Coverage, tmp_path: Path) -> None:
    text = entry("first_of", 'line = "pr_info();"') + entry("first_of", 'match = "if .*"')
    account = left_out.account(coverage, entries(tmp_path, text))
    assert [(str(one), why) for one, why in account.stale] == [
        (f"{NAME}:first_of: pr_info();", "no line matches"),
        (f"{NAME}:first_of: if .*", "tests reach it"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[left-out]]\nfile = "a"\n', "entry 1 has no function, reason"),
        (entry() + entry(reason=" "), "entry 2 gives no reason"),
        (entry(more='line = "a"\nmatch = "b"'), "both line and match"),
        (entry(more='match = "("'), "no regular expression"),
        (entry(more="lines = 3"), "unknown: lines"),
        ("[left]\n", "unknown: left"),
        ("what", "left-out.toml: "),
    ],
)
def test_a_file_of_reasons_that_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        entries(tmp_path, text)


def test_no_file_of_reasons(tmp_path: Path) -> None:
    assert left_out.read(tmp_path / "none.toml") == ()
