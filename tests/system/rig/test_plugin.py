"""The plugin as its users see it: its fixtures, and reports of failures, hangs, rig errors."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from emu import paths
from emu.images.cache import Cache

TESTS = Path(__file__).parent / "plugin/written_by_others.py"
OTHER_PLUGIN = Path(__file__).parent / "plugin/other_plugin.py"
CONFTEST = "from emu.pytestplugin.short_names import *"
"""The line that the README gives for the short names."""


@pytest.fixture(scope="session")
def run(everything: Cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """pytest's output and JUnit report for these tests, in a project of their own.

    They run once (a minute) for all workers of a session.
    """
    base = tmp_path_factory.getbasetemp()
    # With workers, each has a directory of its own below the session's.
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "others"
    place.mkdir(exist_ok=True)
    output, report = place / "output", place / "report.xml"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            output.write_text(_run(place, report))
    return output.read_text(), report


def _run(place: Path, report: Path) -> str:
    (place / "test_others.py").write_text(TESTS.read_text())
    (place / "conftest.py").write_text(f"{CONFTEST}\n")
    (place / "other_plugin.py").write_text(OTHER_PLUGIN.read_text())
    (place / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -p other_plugin\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout)
    assert done.returncode == 1, done.stderr
    return done.stdout


def case(report: Path, name: str) -> ElementTree.Element:
    for found in ElementTree.parse(report).iter("testcase"):
        if found.get("name") == name:
            return found
    raise AssertionError(f"the report has no test {name}")


def test_readme_example_is_run() -> None:
    readme = (paths.checkout() / "README.md").read_text()
    example = readme.partition("```python\n")[2].partition("```")[0]
    assert example
    assert example in TESTS.read_text()
    assert f"`{CONFTEST}`" in readme


def test_counts(run: tuple[str, Path]) -> None:
    assert "6 failed, 2 passed, 3 errors" in run[0].splitlines()[-1]


def test_report_has_the_provenance(run: tuple[str, Path]) -> None:
    passed = case(run[1], "test_ring_shrinks_over_restore")
    found = {one.get("name"): one.get("value") or "" for one in passed.iter("property")}
    assert found["accelerator"] in ("tcg", "kvm")
    assert len(found["xen-sha256"]) == 64
    assert found["qemu"].startswith(("7.", "8.", "9.", "1"))
    for end in ("front", "back"):
        assert "patched build id " in found[f"{end}-driver"]
    assert {"dom0-kernel", "domu-kernel", "guest-images", "clock", "run"} <= set(found)


def test_assertion_comes_before_the_consoles(run: tuple[str, Path]) -> None:
    text = run[0].partition(" test_that_fails ")[2].partition("\n____")[0]
    assert text.index("assert 16 == 7") < text.index("consoles of ")
    assert "xen_blkfront: loading out-of-tree module" in text
    files = [Path(line) for line in text.splitlines() if line.endswith("/state-xenstore.log")]
    assert "device/vbd/51712/ring-ref15" in files[0].read_text()


def test_traceback_leaves_out_our_frames(run: tuple[str, Path]) -> None:
    text = run[0].partition(" test_in_which_nothing_connects ")[2].partition("\n____")[0]
    assert "E       emu.errors.NotHeld: xvda of domU u1 did not connect" in text
    assert "front end Initialising, back end InitWait" in text
    assert "emu/xen/domain.py" not in text


def test_broken_rig_is_no_failed_test(run: tuple[str, Path]) -> None:
    assert "ERROR at rig of test_in_which_qemu_ends" in run[0]
    broken = case(run[1], "test_in_which_qemu_ends")
    assert broken.find("error") is not None
    assert broken.find("failure") is None


def test_killed_qemu_is_an_error_of_the_rig(run: tuple[str, Path]) -> None:
    error = case(run[1], "test_in_which_qemu_is_killed").find("error")
    assert error is not None
    assert "QEMU was ended by signal 9" in (error.text or "")
    assert "INTERNALERROR" not in run[0]


def test_killed_qemu_is_the_cause_of_what_a_test_notices(run: tuple[str, Path]) -> None:
    broken = case(run[1], "test_in_which_qemu_is_killed_unnoticed")
    assert broken.find("failure") is None
    error = broken.find("error")
    assert error is not None
    assert "QEMU was ended by signal 9" in (error.text or "")
    assert "nobody is told" in (error.text or ""), "the report does not say what the test noticed"


def test_session_survives_a_question_that_qemu_does_not_answer(run: tuple[str, Path]) -> None:
    passed = case(run[1], "test_whose_provenance_is_interrupted")
    found = {one.get("name"): one.get("value") or "" for one in passed.iter("property")}
    assert found["provenance"].startswith("unknown")
    assert "INTERNALERROR" not in run[0]


def test_machine_that_a_guest_resets_is_a_failed_test(run: tuple[str, Path]) -> None:
    failure = case(run[1], "test_in_which_dom0_resets_its_machine").find("failure")
    assert failure is not None
    assert "guest-reset" in (failure.get("message") or "")


def test_disk_that_a_set_up_does_not_get_is_a_failed_test(run: tuple[str, Path]) -> None:
    failure = case(run[1], "test_whose_set_up_connects_nothing").find("failure")
    assert failure is not None
    assert "xvda of domU u1 did not connect" in (failure.get("message") or "")
    assert "in the test's set-up, with its host up" in run[0]


def test_trouble_on_a_console_fails_the_test(run: tuple[str, Path]) -> None:
    failure = case(run[1], "test_that_leaves_trouble").find("failure")
    assert failure is not None
    assert "BUG: kernel NULL pointer dereference" in (failure.text or "")


def test_hang_shows_the_state_of_the_stack(run: tuple[str, Path]) -> None:
    text = run[0].partition(" test_that_hangs ")[2]
    assert "Timeout (>8.0s) from pytest-timeout" in text
    for view in ("qemu", "domains", "xenstore", "grants", "events", "dmesg-dom0", "dmesg-domu"):
        assert f"{view} (" in text
    assert "== threads, after QEMU was asked" in text
    assert "gnttab_usage_print_all ] done" in text
    assert "Event channel information for domain 1" in text
    assert "sysrq: Show Blocked State" in text
