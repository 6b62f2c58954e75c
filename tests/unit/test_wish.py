"""Requests for a run, resolved and checked before anything is fetched."""

from __future__ import annotations

import pytest

from emu.errors import InputError
from emu.stack.wish import RunWish, Wish, check_ring_pages
from emu.xen.config import DomuConfig


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


def test_lun_without_a_block_is_refused() -> None:
    with pytest.raises(InputError, match="is no disk"):
        Wish(lun_mib=0)
