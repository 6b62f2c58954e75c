"""What a test asks for, in markers: the stack it runs on, as a `Wish`."""

from __future__ import annotations

import pytest

from emu.images.kernels import full_name
from emu.lab.wish import Wish
from emu.xen.config import DomuConfig

MARKERS = (
    "stack(domu, domu_memory, domu_vcpus, kernel, kernel_options, grant_frames, clock, ...): "
    "what the fixtures `stack` and `host` are made of; the rest are arguments of emu's Wish",
    "trouble(*names): the bad patterns that a test provokes on the consoles of its stack",
)


def asked_by(node: pytest.Item) -> dict[str, object]:
    """All that the markers `stack` of a test ask for.

    Where several name the same thing the nearest counts: one on a case of `parametrize` goes
    before those on the function (which pytest lists first).
    """
    case = getattr(node, "callspec", None)
    asked: dict[str, object] = {}
    for marker in (*(case.marks if case else ()), *node.iter_markers("stack")):
        if marker.name == "stack":
            asked = {**marker.kwargs, **asked}
    return asked


def wish_for(node: pytest.Item) -> Wish:
    """The stack that a test asks for, under the options `--kernel`, `--clock` and `--record`.

    Two hosts have wall time, whatever the option says, and are not recorded, nor is what asks
    for wall time: emu.rig.hosts, qemu-patches/REPLAY.md.
    (`--qemu` is in the environment, where every `Wish` finds it.)
    """
    asked = asked_by(node)
    kernel = kernel_for(asked.pop("kernel", None), node.config.getoption("emu_kernel"))
    clock = node.config.getoption("emu_clock")
    if "emu_two_hosts" in getattr(node, "fixturenames", ()):
        clock = None
    elif node.config.getoption("emu_record"):
        asked["record"] = asked.get("clock", clock or "icount") == "icount"
    return wish_from_marks(**{**({"clock": clock} if clock else {}), **asked, **kernel})


def kernel_for(asked: object, option: str | None) -> dict[str, object]:
    """The kernel of a stack, as an argument of `Wish`: what a test asks for under `--kernel`.

    A full name ("lab-6.1") is what the test is about, and stays.
    """
    if option is None:
        return {} if asked is None else {"kernel": asked}
    if asked == "lab":
        return {"kernel": f"lab-{full_name(option).partition('-')[2]}"}
    return {"kernel": option if asked is None else asked}


def wish_from_marks(
    domu: str = "pv",
    domu_memory: int = 256,
    domu_vcpus: int = 1,
    kernel_options: str = "",
    grant_frames: int | None = None,
    **wish: object,
) -> Wish:
    """A wish from a marker's arguments: the domU's, and those of `Wish`."""
    config = DomuConfig(
        kind=domu,
        memory=domu_memory,
        vcpus=domu_vcpus,
        kernel_options=kernel_options,
        grant_frames=grant_frames,
    )
    return Wish(domu=config, **wish)  # type: ignore[arg-type]


def declared_by(node: pytest.Item) -> frozenset[str]:
    """The bad patterns that a test is to provoke: the nearest marker `trouble`."""
    marker = node.get_closest_marker("trouble")
    return frozenset(marker.args if marker else ())
