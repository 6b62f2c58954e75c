"""Locking the kernels of an archive: what its index (recorded from apt 2.6.1) comes to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from emu.images import kernel_lock
from emu.images.apt import Apt, Record, parse_records
from emu.images.kernel_lock import FoundKernel
from emu.images.packages import kernel_set

TRANSCRIPTS = Path(__file__).parent / "transcripts"


class RecordedIndex:
    """What `Apt` says of an archive, from a recorded index."""

    def __init__(self, name: str) -> None:
        self.records = parse_records((TRANSCRIPTS / name).read_text())
        self.asked = 0

    def names(self) -> set[str]:
        return {record.name for record in self.records}

    def every_record(self, names: Iterable[str]) -> list[Record]:
        self.asked += 1
        wanted = set(names)
        return [record for record in self.records if record.name in wanted]


def found_in(index: RecordedIndex, *, libraries: bool) -> dict[str, FoundKernel]:
    kernels = kernel_lock.kernels_of(cast(Apt, index), libraries)
    return {kernel.release: kernel for kernel in kernels}


@pytest.fixture
def bookworm() -> RecordedIndex:
    return RecordedIndex("index-bookworm-kernels")


@pytest.fixture
def backports() -> RecordedIndex:
    return RecordedIndex("index-trixie-backports-kernels")


def names(records: Iterable[Record]) -> list[str]:
    return [f"{record.name} {record.version}" for record in records]


def test_every_image_is_found_and_nothing_else(bookworm: RecordedIndex) -> None:
    # Not: metapackages, debug symbols, real-time kernels, those without a signature.
    assert found_in(bookworm, libraries=False).keys() == {
        "6.1.0-52-amd64",
        "6.1.0-53-amd64",
        "6.1.0-53-cloud-amd64",
        "6.12.107+deb12-amd64",
    }
    assert bookworm.asked == 1


def test_headers_share_the_programs_of_their_line(bookworm: RecordedIndex) -> None:
    found = found_in(bookworm, libraries=False)
    kernel = found["6.1.0-53-amd64"]
    assert names(kernel.image) == ["linux-image-6.1.0-53-amd64 6.1.187-1"]
    assert names(kernel.headers) == [
        "linux-headers-6.1.0-53-amd64 6.1.187-1",
        "linux-headers-6.1.0-53-common 6.1.187-1",
        "linux-kbuild-6.1 6.1.192-2",  # there is none of 6.1.187
    ]
    assert names(kernel.source) == ["linux-source-6.1 6.1.187-1"]
    assert names(found["6.12.107+deb12-amd64"].headers)[2:] == [
        "linux-kbuild-6.12.107+deb12 6.12.107-1~deb12u1"
    ]


def test_kernel_without_headers_has_its_image_alone(bookworm: RecordedIndex) -> None:
    kernel = found_in(bookworm, libraries=False)["6.1.0-52-amd64"]
    assert (kernel.headers, kernel.source, kernel.complete) == ((), (), True)
    assert [name for name, _ in kernel.sets()] == [kernel_set("image", kernel.release)]


def test_headers_without_the_source_of_their_version_are_left_out(
    bookworm: RecordedIndex,
) -> None:
    bookworm.records = [
        record
        for record in bookworm.records
        if (record.name, record.version) != ("linux-source-6.1", "6.1.187-1")
    ]
    kernel = found_in(bookworm, libraries=False)["6.1.0-53-amd64"]
    assert (kernel.headers, kernel.source) == ((), ())


def test_split_image_has_all_its_parts(backports: RecordedIndex) -> None:
    kernel = found_in(backports, libraries=False)["7.2.12+deb13-amd64"]
    parts = [record.name.split("-")[1] for record in kernel.image]
    assert parts == ["base", "binary", "image", "modules"]
    assert {record.version for record in kernel.image} == {"7.2.12-1~bpo13+1"}


def test_image_whose_modules_are_gone_is_incomplete(backports: RecordedIndex) -> None:
    kernel = found_in(backports, libraries=False)["6.19.14+deb13-amd64"]
    assert not kernel.complete
    assert [name for name, _ in kernel.sets()] == [kernel_set("incomplete", kernel.release)]


def test_programs_bring_their_libraries_where_these_are_newer(backports: RecordedIndex) -> None:
    headers = found_in(backports, libraries=True)["7.2.12+deb13-amd64"].headers
    libraries = [record for record in headers if not record.name.startswith("linux-")]
    assert [record.name for record in libraries] == [
        "libc6",
        "libelf1t64",
        "libgcc-s1",
        "libssl3t64",
        "libzstd1",
        "zlib1g",
    ]
    newest = {record.name: record.version for record in libraries}
    assert newest["libssl3t64"] == "3.5.9-1~deb13u1"
    without = found_in(RecordedIndex("index-trixie-backports-kernels"), libraries=False)
    assert all(one.name.startswith("linux-") for one in without["7.2.12+deb13-amd64"].headers)
