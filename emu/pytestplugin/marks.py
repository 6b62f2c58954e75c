"""The markers of a test, and the stack that they and the options ask for, as a `Wish`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import pytest

from emu.errors import InputError
from emu.images.kernel_specs import full_name, line_of_name
from emu.machine.spec import DOM0_MEMORY
from emu.stack.wish import Wish
from emu.xen.config import Dom0Config, DomuConfig

MARKERS = (
    "stack(domu, domu_memory, domu_vcpus, kernel, xen, kernel_options, grant_frames, xen_options, "
    "dom0_memory, dom0_vcpus, dom0_options, clock, ...): what `emu_stack` and `emu_host` are made "
    "of, a pair of xen for those of `emu_two_hosts`; the rest are arguments of emu's Wish",
    "drivers: exercises the block drivers, as `-m drivers` selects for who has changed them: every "
    "test with one of the fixtures for hosts, domUs and LUNs, unless it is marked `rig`",
    "rig: is about the emulated hosts, not about the drivers in them",
    "trouble(*names): the bad patterns that a test provokes on its consoles",
)

_WITH_DRIVERS = {f"emu_{name}" for name in ("domu", "host", "ledger", "lun", "two_hosts")}
"""The fixtures of a test that loads drivers, and has a disk over them."""


def mark_drivers(node: pytest.Item) -> None:
    """Give a test the marker `drivers` if its fixtures say so, and it is not marked `rig`."""
    used = _WITH_DRIVERS.intersection(getattr(node, "fixturenames", ()))
    if used and not node.get_closest_marker("rig"):
        node.add_marker("drivers")


def asked_by(node: pytest.Item) -> dict[str, object]:
    """The arguments of a test's `stack` markers, merged.

    The nearest marker wins: one on a `parametrize` case goes before those on the function
    (which pytest lists first).
    """
    case = getattr(node, "callspec", None)
    asked: dict[str, object] = {}
    for marker in (*(case.marks if case else ()), *node.iter_markers("stack")):
        if marker.name == "stack":
            asked = {**marker.kwargs, **asked}
    return asked


def wish_for(node: pytest.Item) -> Wish:
    """The stack that a test asks for, under the options for kernels, Xen, clock and recording.

    Two hosts always have wall time (see emu.rig.hosts). They are not recorded, nor are tests that
    ask for wall time (qemu-patches/REPLAY.md). `Wish` finds `--emu-qemu` in the environment.
    """
    asked = asked_by(node)
    trees = (node.config.getoption(f"emu_{name}") for name in ("tree", "domu_tree", "config"))
    kernel = trees_for(asked, *trees)
    kernel |= kernel_for(asked.pop("kernel", None), node.config.getoption("emu_kernel"))
    pair = "emu_two_hosts" in getattr(node, "fixturenames", ())
    xen = xens_for(asked.pop("xen", None), node.config.getoption("emu_xen"), pair=pair)
    clock = node.config.getoption("emu_clock")
    if pair:
        clock = None
    elif node.config.getoption("emu_record"):
        asked["record"] = asked.get("clock", clock or "icount") == "icount"
    return wish_from_marks(**{**({"clock": clock} if clock else {}), **asked, **kernel, **xen})


def kernel_for(asked: object, option: str | None) -> dict[str, object]:
    """The kernel of a stack, as an argument of `Wish`; `option` is that of `--emu-kernel`.

    A test that asks for a full name ("lab-6.1") is about that kernel, and keeps it.
    """
    if option is None:
        return {} if asked is None else {"kernel": asked}
    if asked == "lab":
        return {"kernel": f"lab-{line_of_name(full_name(option))}"}
    return {"kernel": option if asked is None else asked}


def trees_for(
    asked: Mapping[str, object], tree: str | None, domu_tree: str | None, config: str | None
) -> dict[str, object]:
    """The trees of a stack, as arguments of `Wish`, from those of the options.

    A test that names a kernel is about that kernel: it keeps it, for dom0 and the domU each.
    """
    found: dict[str, object] = {}
    if "kernel" in asked:
        return found
    if tree:
        found["tree"] = tree
    if domu_tree and "domu_kernel" not in asked:
        found["domu_tree"] = domu_tree
    if found and config:
        found["config"] = config
    return found


def xens_for(asked: object, option: str | None, *, pair: bool) -> dict[str, object]:
    """The Xen of a stack, or those of the two of a `pair`, as arguments of `Wish`; `option` is that
    of `--emu-xen`.

    Raises InputError for two where there is one host.
    """
    asked = option if asked is None else asked
    if not isinstance(asked, (tuple, list)):
        return {} if asked is None else {"xen": asked}
    if not pair or len(asked) != 2:
        raise InputError(
            f"xen={tuple(asked)!r}: one host has one Xen, and two hosts have two",
            hint='xen="4.20", or with the fixture two_hosts xen=("4.17", "4.20")',
        )
    return {"xen": asked[0], "second_xen": asked[1]}


def wish_from_marks(
    domu: str = "pv",
    domu_memory: int = 256,
    domu_vcpus: int = 1,
    kernel_options: str = "",
    grant_frames: int | None = None,
    dom0_memory: int = DOM0_MEMORY,
    dom0_vcpus: int = 1,
    dom0_options: str = "",
    **wish: object,
) -> Wish:
    """A wish from a marker's arguments: those of both guests, and those of `Wish`.

    Raises InputError for any other.
    """
    known = {field.name for field in fields(Wish)} - {"domu", "dom0"}
    if unknown := sorted(set(wish) - known):
        raise InputError(
            f"a stack has no {', '.join(unknown)}",
            hint=f"what Wish has: {', '.join(sorted(known))}",
        )
    config = DomuConfig(
        kind=domu,
        memory=domu_memory,
        vcpus=domu_vcpus,
        kernel_options=kernel_options,
        grant_frames=grant_frames,
    )
    dom0 = Dom0Config(dom0_memory, dom0_vcpus, dom0_options)
    return Wish(domu=config, dom0=dom0, **wish)  # type: ignore[arg-type]


def declared_by(node: pytest.Item) -> frozenset[str]:
    """The bad patterns that a test is to provoke, from the nearest `trouble` marker."""
    marker = node.get_closest_marker("trouble")
    return frozenset(marker.args if marker else ())
