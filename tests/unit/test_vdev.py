"""Names and numbers of virtual block devices, and xl's words for a disk."""

from __future__ import annotations

import itertools

import pytest

from emu.errors import InputError
from emu.xen import vdev
from emu.xen.disk import DiskOptions, NamedDisk, parse_disk
from emu.xen.vdev import disk_names, of_number, parse, virtual_device


@pytest.mark.parametrize(
    ("name", "number", "linux"),
    [
        ("xvda", 51712, "xvda"),
        ("xvdp", 51952, "xvdp"),
        ("xvda1", 51713, "xvda1"),
        ("xvda16", 1 << 28 | 16, "xvda16"),
        ("xvdq", 1 << 28 | 16 << 8, "xvdq"),
        ("xvdz", 1 << 28 | 25 << 8, "xvdz"),
        ("xvdaa3", 1 << 28 | 26 << 8 | 3, "xvdaa3"),
        ("xvdzz", 1 << 28 | 701 << 8, "xvdzz"),
        ("hda", 3 << 8, "xvda"),
        ("hdb", 3 << 8 | 64, "xvdb"),
        ("hdc", 22 << 8, "xvdc"),
        ("hdd2", 22 << 8 | 66, "xvdd"),
        ("sda", 8 << 8, "xvda"),
        ("sdf", 8 << 8 | 80, "xvdf"),
        ("sdp15", 8 << 8 | 255, "xvdp15"),
    ],
)
def test_numbers_and_names(name: str, number: int, linux: str) -> None:
    assert virtual_device(name) == number
    assert of_number(number) == parse(name)
    assert parse(name).linux == linux


@pytest.mark.parametrize(
    "name", ["xvd", "xvdaaa", "xvda\n", "xvda01", "xvda256", "hde", "hda64", "sdq", "sda16", "vda"]
)
def test_no_name_of_a_disk(name: str) -> None:
    with pytest.raises(InputError, match="no disk name: xvda to xvdzz, hda to hdd, sda to sdp"):
        virtual_device(name)


@pytest.mark.parametrize("number", [9 << 8, 202 << 16, 22 << 8 | 128])
def test_number_of_no_disk(number: int) -> None:
    assert of_number(number) is None


def test_names_are_in_order_of_their_numbers() -> None:
    names = list(disk_names())
    numbers = [virtual_device(name) for name in names]
    assert names[15:17] + names[25:27] == ["xvdp", "xvdq", "xvdz", "xvdaa"]
    assert len(numbers) == 702
    assert all(first < second for first, second in itertools.pairwise(numbers))
    assert all(
        vdev.of_number(number) == parse(name) for name, number in zip(names, numbers, strict=True)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DiskOptions(), "phy:/dev/sda,sdb,w"),
        (DiskOptions("r", cdrom=True), "phy:/dev/sda,sdb,r,devtype=cdrom"),
        (DiskOptions(discard=False), "phy:/dev/sda,sdb,w,no-discard"),
        (DiskOptions(discard=True, partition=2), "phy:/dev/sda2,sdb,w,discard"),
    ],
)
def test_words_for_xl(options: DiskOptions, words: str) -> None:
    assert options.words("/dev/sda", "sdb") == f"{words},script=block-emu"


def test_options_that_make_no_disk() -> None:
    with pytest.raises(InputError, match="can't be written"):
        DiskOptions(cdrom=True)
    with pytest.raises(InputError, match="r or w, not 'w!'"):
        DiskOptions("w!")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has the number 1"):
        DiskOptions(partition=0)
    with pytest.raises(InputError, match="no disk name"):
        DiskOptions().words("/dev/sda", "vda")


def test_disk_in_the_words_of_a_command() -> None:
    assert parse_disk("xvda") == NamedDisk()
    assert parse_disk("hda,r,cdrom,untrusted") == NamedDisk(
        "hda", DiskOptions("r", cdrom=True, trusted=False)
    )
    assert parse_disk("xvdaa,no-discard").options.discard is False
    assert parse_disk("sdb").block == "xvdb"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hde", "'hde' is no disk name"),
        ("xvda,large", "'large' says nothing of a disk: r, w, cdrom"),
        ("xvda,r,w", "says two things of one"),
        ("xvda,cdrom", "a CD-ROM can't be written"),
    ],
)
def test_disk_in_other_words_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_disk(text)
