"""Requests for a run, resolved and checked before anything is fetched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from emu.errors import InputError
from emu.images.tree_kernel import TreeWish
from emu.machine.spec import xen_cmdline
from emu.stack.wish import RunWish, Wish, check_ring_pages
from emu.xen.config import Dom0Config, DomuConfig


def run(memory: int, data_mib: int | None = None, lun_mib: int = 256) -> RunWish:
    stack = Wish(domu=DomuConfig(memory=memory), lun_mib=lun_mib)
    return RunWish(stack, data_mib=data_mib)


@pytest.mark.parametrize(
    ("memory", "lun_mib", "moved"), [(256, 256, 64), (128, 256, 48), (64, 256, 24), (256, 16, 16)]
)
def test_default_data_follows_the_domu(memory: int, lun_mib: int, moved: int) -> None:
    assert run(memory, lun_mib=lun_mib).moved_mib == moved


@pytest.mark.parametrize(("memory", "data_mib"), [(128, 49), (256, 97), (256, 0)])
def test_data_that_does_not_fit_is_refused(memory: int, data_mib: int) -> None:
    with pytest.raises(InputError, match="does not fit"):
        run(memory, data_mib)


@pytest.mark.parametrize("pages", [0, -1, 3, 48])
def test_ring_without_a_power_of_two_pages_is_refused(pages: int) -> None:
    with pytest.raises(InputError, match="a ring has 1, 2, 4"):
        check_ring_pages(pages)


@pytest.mark.parametrize(
    ("release", "nearest"),
    [("4.18", "4.20"), ("4.21", "4.20"), ("4.2", "4.14"), ("4.17.7", "4.17"), ("new", "4.17")],
)
def test_xen_that_no_suite_has_is_refused(release: str, nearest: str) -> None:
    refused = pytest.raises(InputError, match=rf"no Xen {release}: .*4\.14 \(bullseye\), 4\.17 ")
    for wanted in ({"xen": release}, {"second_xen": release}):
        with refused as error:
            Wish(**wanted)  # type: ignore[arg-type]
        assert error.value.hint == f"--xen {nearest}"


def test_second_host_with_the_same_xen_is_nothing_special() -> None:
    assert Wish(xen="4.20", second_xen="4.20") == Wish(xen="4.20")


def test_lun_without_a_block_is_refused() -> None:
    with pytest.raises(InputError, match="is no disk"):
        Wish(lun_mib=0)


def test_tree_is_the_kernel_of_both_unless_the_domu_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wish = Wish(tree="linux", config="mine")
    assert wish.dom0_choice == wish.domu_choice
    assert wish.dom0_choice == TreeWish(tmp_path / "linux", tmp_path / "mine")
    assert wish.kernel_name == str(tmp_path / "linux")
    monkeypatch.chdir("/")  # the path is that of where it was asked for
    assert Wish(**{**vars(wish)}) == wish
    named = Wish(tree="/linux", domu_kernel="debian")
    assert (named.kernel_name, named.domu_choice) == ("/linux", "debian-6.1")
    named = Wish(kernel="debian", domu_tree="/linux")
    assert (named.dom0_choice, named.domu_kernel_name) == ("debian-6.1", "/linux")


def test_tree_and_name_and_a_configuration_of_none_are_refused() -> None:
    with pytest.raises(InputError, match="not both"):
        Wish(domu_tree="/linux", domu_kernel="debian")
    with pytest.raises(InputError, match="a configuration is for a kernel of a tree"):
        Wish(config="/mine")


def test_dom0_and_xen_are_part_of_the_machine() -> None:
    plain = xen_cmdline()
    assert xen_cmdline(512, 2, "gnttab_max_frames=4") == (
        f"{plain.replace('1024M', '512M')} dom0_max_vcpus=2 gnttab_max_frames=4"
    )
    wish = Wish(dom0=Dom0Config(512, 2, "quiet"), xen_options="gnttab_max_frames=4")
    assert Wish.of_fields(dataclasses.asdict(wish)) == wish


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"memory": 100}, "a dom0 of 100 MiB can't boot"),
        ({"vcpus": 0}, "dom0 has 1 to 8 vCPUs, not 0"),
        ({"options": "a\nb"}, "no list of options"),
    ],
)
def test_dom0_that_can_not_be_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Dom0Config(**asked)


def test_options_of_xen_in_two_lines_are_refused() -> None:
    with pytest.raises(InputError, match="no list of options"):
        Wish(xen_options="a\nb")
