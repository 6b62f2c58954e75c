"""Which variants of a series fit a source: on small sources and patches of the tests' own."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from emu.errors import InputError
from emu.images.series_fit import fit

NAME = "drivers/block/xen-blkfront.c"
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OLD = [f"{word}\n" for word in WORDS]


def put(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def patch(path: Path, before: list[str], after: list[str]) -> None:
    put(path, list(difflib.unified_diff(before, after, f"a/{NAME}", f"b/{NAME}")))


def changed(lines: list[str], **words: str) -> list[str]:
    return [words.get(line.strip(), line.strip()) + "\n" for line in lines]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Two patches for the newest line, whose source has "THREE"; variants for 6.12."""
    top = changed(OLD, three="THREE")
    folder = tmp_path / "series"
    patch(folder / "0001-a.patch", top, changed(top, one="1"))
    patch(folder / "0002-b.patch", changed(top, one="1"), changed(top, one="1", nine="9"))
    patch(folder / "6.12/0001-a.patch", OLD, changed(OLD, one="1"))
    return folder


def fitted(series: Path, version: str, source: Path) -> list[str]:
    return [str(path.relative_to(series)) for path in fit(series, version, source)]


def test_line_has_its_own_variants(series: Path, tmp_path: Path) -> None:
    put(tmp_path / NAME, OLD)
    assert fitted(series, "6.12", tmp_path) == ["6.12/0001-a.patch", "0002-b.patch"]


def test_source_with_a_backport_takes_the_newer_variant(series: Path, tmp_path: Path) -> None:
    put(tmp_path / NAME, changed(OLD, three="THREE"))
    assert fitted(series, "6.12", tmp_path) == ["0001-a.patch", "0002-b.patch"]


def test_line_without_variants_takes_those_of_others(series: Path, tmp_path: Path) -> None:
    put(tmp_path / NAME, OLD)
    assert fitted(series, "7.2", tmp_path) == ["6.12/0001-a.patch", "0002-b.patch"]


def test_patch_that_no_variant_of_fits_is_named(series: Path, tmp_path: Path) -> None:
    put(tmp_path / NAME, changed(OLD, two="TWO"))
    with pytest.raises(InputError, match=r"0001-a\.patch does not apply") as refused:
        fit(series, "6.12", tmp_path)
    assert "+     2  TWO" in refused.value.lines
    assert (tmp_path / NAME).read_text().startswith("one\nTWO\n"), "the source was changed"


def test_changed_series_is_looked_at_again(series: Path, tmp_path: Path) -> None:
    put(tmp_path / NAME, OLD)
    assert len(fit(series, "6.12", tmp_path)) == 2
    (series / "0002-b.patch").unlink()
    assert fitted(series, "6.12", tmp_path) == ["6.12/0001-a.patch"]
