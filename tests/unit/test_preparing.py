"""What a session of tests needs: collected, planned, built in order, estimated."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from small_patches import change

from emu import cli
from emu.errors import EXIT_HELD, EXIT_INPUT, InputError, RigError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import MORE_PATCHES, ON
from emu.progress import Progress
from emu.stack.wish import Wish
from emu.suite import preparing
from emu.suite.preparing import Lookup, Missing, Need, Step
from emu.xen.config import DomuConfig

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_default(emu_host): pass
def test_default_again(emu_lun, emu_ledger): pass
def test_without_a_stack(): pass
def test_own_stack(emu_prepared): pass

@pytest.mark.stack(kernel="lab", domu="pvh", domu_memory=64)
def test_two(emu_two_hosts): pass

@pytest.mark.stack(xen=("4.17", "4.20"))
def test_two_xens(emu_two_hosts): pass

@pytest.mark.stack(kernel="lab", domu_vcpus=8, grant_frames=2)
def test_lab(emu_domu): pass
"""


class Notes(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def wishes(pytester: pytest.Pytester, *options: str) -> preparing.Collected:
    pytester.makepyfile(TESTS)
    file = pytester.path / "wishes.json"
    done = pytester.runpytest_subprocess("--collect-only", f"--emu-wishes={file}", *options)
    assert done.ret == pytest.ExitCode.OK
    return preparing.read(json.loads(file.read_text()))


def test_collected_stacks(pytester: pytest.Pytester) -> None:
    lab = {"kernel": "lab", "qemu": "system", "clock": "wall"}
    pvh = Wish(domu=DomuConfig(kind="pvh", memory=64), **lab)  # type: ignore[arg-type]
    wide = Wish(domu=DomuConfig(vcpus=8, grant_frames=2), **lab)  # type: ignore[arg-type]
    assert set(wishes(pytester, "-n", "2").needs) == {
        Need(Wish(), False, 3),
        Need(pvh, True, 1),
        Need(wide, False, 1),
        Need(Wish(second_xen="4.20"), True, 1),
    }


def test_collected_stacks_follow_the_options(pytester: pytest.Pytester) -> None:
    (pytester.path / "my.patch").write_text(change())
    collected = wishes(
        pytester, "--kernel", "debian-6.12", "--driver-patches", "my.patch", "--on", "stock",
        "--xen", "4.14", "-k", "two or again",
    )  # fmt: skip
    needs = {(need.wish.kernel, need.wish.xen, need.two_hosts) for need in collected.needs}
    assert needs == {
        ("debian-6.12", "4.14", False),
        ("lab-6.12", "4.14", True),
        ("debian-6.12", "4.17", True),
    }
    assert collected.environ[MORE_PATCHES] == str(pytester.path / "my.patch")
    assert collected.environ[ON] == "stock"


def test_session_names_tests_that_wait_for_a_kernel(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    pytester.makepyfile(TESTS)
    output = pytester.runpytest_subprocess("--collect-only").stdout.str()
    assert "2 tests need kernel lab-6.1, not built: about 8 min" in output
    assert "`emu prepare` builds that before the tests run" in output
    output = pytester.runpytest_subprocess("--collect-only", "-k", "default").stdout.str()
    assert "not built" not in output


def test_plan_of_an_empty_cache(tmp_path: Path) -> None:
    small = DomuConfig(kind="pvh", memory=64)
    needs = [
        Need(Wish(), False, 9),
        Need(Wish(kernel="lab", domu=small), True, 3),
        Need(Wish(kernel="lab", domu=small), False, 1),
        Need(Wish(second_xen="4.20"), True, 2),
    ]
    cache = Cache(tmp_path)
    steps = preparing.plan(needs, BuildContext(cache))
    assert [(step.name, step.tests) for step in steps] == [
        ("kernel debian-6.1", 11),
        ("kernel lab-6.1", 4),
        ("guest images with debian-6.1", 11),
        ("drivers for debian-6.1", 11),
        ("guest images with lab-6.1", 4),
        ("drivers for lab-6.1", 4),
        ("guest images with debian-6.1 and Xen 4.20", 2),
        ("checkpoint: debian-6.1, pv, 256 MiB", 9),
        ("checkpoint of two hosts: lab-6.1, pvh, 64 MiB", 3),
        ("checkpoint: lab-6.1, pvh, 64 MiB", 1),
        ("checkpoint of two hosts: debian-6.1, pv, 256 MiB, second host's Xen 4.20", 2),
    ]
    assert str(steps[1]) == "4 tests need kernel lab-6.1, not built: about 8 min"
    assert str(steps[9]).startswith("1 test needs checkpoint: ")
    assert cache.entries() == [entry for entry in cache.entries() if not entry.key]


def test_lookup_finds_and_builds_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    lookup = Lookup(cache)
    with pytest.raises(Missing):
        lookup.entry("thing", {"a": 1}, lambda made: pytest.fail("was built"))
    made = BuildContext(cache).entry("thing", {"a": 1}, lambda made: (made / "x").touch())
    assert lookup.entry("thing", {"a": 1}, lambda made: pytest.fail("was built")) == made


def step(
    name: str, build: Callable[[BuildContext], object], *, seconds: float = 20, aside: bool = False
) -> Step:
    return Step(name, 1, seconds, build, build, aside)


def test_builds_come_before_checkpoints_and_their_times_are_kept(tmp_path: Path) -> None:
    built: list[str] = []
    both = threading.Barrier(2)

    def boots(name: str) -> Callable[[BuildContext], object]:
        def boot(context: BuildContext) -> None:
            both.wait(10)
            built.append(name)

        return boot

    cache = Cache(tmp_path)
    steps = [
        step("checkpoint: a", boots("a"), aside=True),
        step("kernel debian-6.1", lambda context: built.append("kernel")),
        step("checkpoint: b", boots("b"), aside=True),
    ]
    preparing.perform(steps, BuildContext(cache), jobs=2)
    assert (built[0], {*built[1:]}) == ("kernel", {"a", "b"})
    times = preparing._times(cache)
    assert set(times) == {one.name for one in steps}
    assert preparing.plan([Need(Wish(), False, 1)], BuildContext(cache))[0].seconds < 5


def test_failed_checkpoint_is_left_to_its_tests(tmp_path: Path) -> None:
    def fails(context: BuildContext) -> None:
        raise RigError("it does not boot")

    notes, built = Notes(), list[str]()
    steps = [
        step("checkpoint: a", fails, aside=True),
        step("checkpoint: b", lambda context: built.append("b"), aside=True),
    ]
    preparing.perform(steps, BuildContext(Cache(tmp_path), notes), jobs=1)
    assert built == ["b"]
    assert notes.notes == ["checkpoint: a: it does not boot"]


def test_failed_build_ends_it(tmp_path: Path) -> None:
    def fails(context: BuildContext) -> None:
        raise InputError("no compiler")

    steps = [step("kernel lab-6.1", fails), step("drivers", lambda context: pytest.fail("built"))]
    with pytest.raises(InputError, match="no compiler"):
        preparing.perform(steps, BuildContext(Cache(tmp_path)), jobs=1)


def test_estimate() -> None:
    def nothing(context: BuildContext) -> None: ...

    alone = [step("kernel", nothing, seconds=480), step("drivers", nothing, seconds=20)]
    boots = [step(f"checkpoint: {n}", nothing, seconds=20, aside=True) for n in range(6)]
    assert preparing.estimate([*alone, *boots], jobs=2) == 560
    assert preparing.estimate(boots[:1], jobs=4) == 20
    assert preparing.estimate([], jobs=2) == 0
    assert [preparing.about(seconds) for seconds in (1, 22, 89, 91, 480)] == [
        "about 5 s", "about 20 s", "about 90 s", "about 2 min", "about 8 min",
    ]  # fmt: skip


def test_command_with_nothing_to_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "--", "tests/unit/test_wish.py"]) == EXIT_HELD
    assert "not built" not in capsys.readouterr().err


def test_command_passes_on_pytests_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "--list", "--", "tests/unit/test_nowhere.py"]) == EXIT_INPUT
    assert "file or directory not found" in capsys.readouterr().err
