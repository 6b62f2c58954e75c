"""The stack that a test gets from its markers and the options."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from emu.errors import InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.tree_kernel import TreeWish
from emu.pytestplugin.marks import wish_for
from emu.rig.hosts import two_hosts
from emu.stack.stack import Artifacts
from emu.stack.wish import Wish

stack = pytest.mark.stack


def item(*marks: pytest.MarkDecorator, fixture: str = "emu_host", **options: object) -> pytest.Item:
    """A collected test, as far as it is used."""
    chosen: dict[str, object] = dict.fromkeys(
        f"emu_{name}" for name in ("kernel", "tree", "domu_tree", "config", "xen", "clock")
    )
    chosen["emu_record"] = False
    chosen |= {f"emu_{name}": value for name, value in options.items()}
    node = SimpleNamespace(
        iter_markers=lambda name: [each.mark for each in marks if each.name == name],
        fixturenames=[fixture],
        config=SimpleNamespace(getoption=chosen.__getitem__),
    )
    return cast("pytest.Item", node)


def test_nearest_marker_wins() -> None:
    wish = wish_for(item(stack(domu="pvh", domu_memory=64), stack(domu="pv", kernel="lab")))
    assert (wish.domu.kind, wish.domu.memory, wish.kernel) == ("pvh", 64, "lab")


@pytest.mark.parametrize(
    ("asked", "option", "given"),
    [
        (None, None, "wall"),
        (None, "icount", "icount"),
        ("wall", "icount", "wall"),
        ("icount", "wall", "icount"),
    ],
)
def test_marker_goes_before_the_clock_option(
    asked: str | None, option: str | None, given: str
) -> None:
    marks = [stack(clock=asked)] if asked else []
    assert wish_for(item(*marks, clock=option)).clock == given


def test_tree_is_the_kernel_of_tests_that_name_none() -> None:
    wish = wish_for(item(tree="/a/linux", config="/a/config"))
    assert (wish.tree, wish.domu_tree, wish.config) == ("/a/linux", None, "/a/config")
    assert wish.dom0_choice == wish.domu_choice == TreeWish(Path("/a/linux"), Path("/a/config"))
    named = wish_for(item(stack(kernel="lab"), tree="/a/linux", config="/a/config"))
    assert (named.kernel_name, named.domu_kernel_name) == ("lab-6.1", "lab-6.1")
    other = wish_for(item(stack(domu_kernel="lab"), tree="/a/linux"))
    assert (other.kernel_name, other.domu_kernel_name) == ("/a/linux", "lab-6.1")


def test_tree_may_be_the_domus_alone() -> None:
    wish = wish_for(item(kernel="debian-6.12", domu_tree="/a/linux"))
    assert (wish.kernel_name, wish.domu_kernel_name) == ("debian-6.12", "/a/linux")
    named = wish_for(item(stack(kernel="lab"), domu_tree="/a/linux"))
    assert (named.kernel_name, named.domu_kernel_name) == ("lab-6.1", "lab-6.1")


@pytest.mark.parametrize(
    ("asked", "option", "given"),
    [
        (None, None, ("4.17", None)),
        (None, "4.20", ("4.20", None)),
        ("4.14", "4.20", ("4.14", None)),
        (("4.17", "4.20"), "4.14", ("4.17", "4.20")),
        (("4.20", "4.20"), None, ("4.20", None)),
    ],
)
def test_marker_goes_before_the_xen_option(
    asked: object, option: str | None, given: tuple[str, str | None]
) -> None:
    marks = [stack(xen=asked)] if asked else []
    wish = wish_for(item(*marks, fixture="emu_two_hosts", xen=option))
    assert (wish.xen, wish.second_xen) == given


@pytest.mark.parametrize("fixture", ["emu_host", "emu_two_hosts"])
def test_as_many_xens_as_hosts(fixture: str) -> None:
    asked = ("4.14", "4.17") if fixture == "emu_host" else ("4.14", "4.17", "4.20")
    with pytest.raises(InputError, match="one host has one Xen, and two hosts have two"):
        wish_for(item(stack(xen=asked), fixture=fixture))


def test_recording_implies_instruction_time() -> None:
    for asked, recorded in (
        (item(record=True), True),
        (item(stack(clock="wall"), record=True), False),
    ):
        wish = wish_for(asked)
        assert (wish.record, wish.clock == "icount") == (recorded, recorded)


@pytest.mark.parametrize("options", [{"clock": "icount"}, {"record": True}])
def test_two_hosts_have_wall_time(options: dict[str, object]) -> None:
    wish = wish_for(item(fixture="emu_two_hosts", **options))
    assert (wish.clock, wish.record) == ("wall", False)


def test_two_hosts_on_instruction_time_are_refused(emu_cache: Cache) -> None:
    artifacts = cast("Artifacts", SimpleNamespace(wish=Wish(clock="icount")))
    refused = pytest.raises(InputError, match="no clock of instructions in common")
    with refused, two_hosts(artifacts, BuildContext(emu_cache)):
        pass


@pytest.mark.parametrize(
    ("option", "lab"),
    [("debian-6.12", "lab-6.12"), ("debian-6.12.107+deb12", "lab-6.12"), ("debian", "lab-6.1")],
)
def test_lab_kernel_is_of_the_line_of_the_option(option: str, lab: str) -> None:
    assert wish_for(item(stack(kernel="lab"), kernel=option)).kernel_name == lab
    assert wish_for(item(stack(kernel="lab-7.3"), kernel=option)).kernel_name == "lab-7.3"
