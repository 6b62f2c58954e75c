"""`emu tests-for`: the table from functions of the drivers to tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emu import cli
from emu.errors import EXIT_HELD, EXIT_INPUT, InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.suite import coverage_table
from emu.suite.coverage import Coverage
from emu.suite.coverage_table import Place, Reaching, Table
from emu.suite.gcov import FileCounts
from emu.suite.records import FileOutline, Outline, Reached, Record

SOURCE = """\
static int blkif_completion(int n)
{
	n++;
	return n;
}

void blkfront_closing(void)
{
	limit++;
}
"""
FRONT, BACK = "xen-blkfront.c", "xen-blkback/xenbus.c"
COMPLETION = Place(FRONT, "blkif_completion", 1, 5)


def record(test: str, seconds: float, **lines: tuple[int, ...]) -> Record:
    files = {"front": FRONT, "back": BACK}
    counts = {files[end]: FileCounts(dict.fromkeys(n, 1), {}) for end, n in lines.items()}
    return Record(test, "passed", seconds, "inputs", (Reached("b1", "s1", counts),))


@pytest.fixture
def table() -> Table:
    file = FileOutline(tuple(SOURCE.splitlines()), frozenset({3, 4, 9}), {}, {})
    coverage = Coverage(
        Outline("b1", "s1", {FRONT: file, BACK: file}),
        [
            record("t::slow", 9, front=(3, 4, 9)),
            record("t::quick", 1.25, front=(3,), back=(3, 4)),
            record("t::none", 1),
        ],
    )
    return coverage_table.of_coverage(coverage, "d1")


def test_tests_of_a_function(table: Table) -> None:
    assert table.functions[COMPLETION] == (Reaching(1.25, "t::quick", 1), Reaching(9, "t::slow", 2))
    assert table.functions[Place(BACK, "blkfront_closing", 7, 10)] == ()


def test_it_is_read_as_it_was_written(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(coverage_table.render(table))
    again = coverage_table.read(path)
    assert coverage_table.render(again) == path.read_text()
    assert [one.test for one in again.functions[COMPLETION]] == ["t::quick", "t::slow"]
    assert len(path.read_text().splitlines()) == 14, "one line for each function and each test"


@pytest.mark.parametrize(
    "wanted",
    [f"{FRONT}:blkif_completion", f"{FRONT}:3", f"{FRONT}:5"],
)
def test_names_of_a_function(table: Table, wanted: str) -> None:
    assert table.find(wanted) == COMPLETION


def test_a_file_without_its_folder(table: Table) -> None:
    assert table.find("xenbus.c:blkfront_closing").file == BACK


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("blkif_completion", "in several files"),
        (f"{FRONT}:completion", f"no function completion in {FRONT}"),
        ("front.c:blkif_completion", "no file front.c"),
        (f"{FRONT}:6", "line 6 of .* is in no function"),
    ],
)
def test_what_is_not_there(table: Table, wanted: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        table.find(wanted)
    with pytest.raises(InputError, match=r"like it: .*blkif_completion"):
        table.find(f"{FRONT}:completion")


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--write-table"):
        coverage_table.read(tmp_path / "none.json")


@pytest.fixture
def own(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command finds this table, and an empty cache."""
    path = tmp_path / "table.json"
    path.write_text(coverage_table.render(table))
    monkeypatch.setattr(coverage_table, "own_file", lambda: path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def test_the_command(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_table, "drivers_digest", lambda context: "d1")
    assert cli.main(["tests-for", f"{FRONT}:blkif_completion"]) == EXIT_HELD
    shown = capsys.readouterr()
    assert f"{FRONT}:blkif_completion (lines 1 to 5): 2 tests" in shown.out
    assert shown.out.index("t::quick") < shown.out.index("t::slow")
    assert shown.err == ""
    assert cli.main(["tests-for", f"{FRONT}:3", "--json"]) == EXIT_HELD
    made = json.loads(capsys.readouterr().out)
    assert [one["test"] for one in made["tests"]] == ["t::quick", "t::slow"]
    assert (made["of_the_line"], made["table_is_old"]) == (False, False)
    assert cli.main(["tests-for", "blkif_nothing"]) == EXIT_INPUT


def test_a_table_of_other_drivers(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tests-for", f"{FRONT}:blkif_completion"]) == EXIT_HELD
    assert "the table is older than the drivers" in capsys.readouterr().err


def test_the_digest_is_of_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = BuildContext(Cache(tmp_path / "cache"))
    (tmp_path / "0001-a.patch").write_text("one\n")
    monkeypatch.setattr(coverage_table, "own_series", lambda: tmp_path)
    before = coverage_table.drivers_digest(context)
    assert coverage_table.drivers_digest(context) == before
    (tmp_path / "0001-a.patch").write_text("two\n")
    assert coverage_table.drivers_digest(context) != before
