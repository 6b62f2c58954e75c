"""What the outcome of a test depends on: its own file and what that uses, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_trees import write_files

from emu import paths
from emu.suite.test_inputs import used_by

FILES = {
    "system/conftest.py": "import everywhere\n",
    "system/grants/test_it.py": "from checks import check\n\nbuild('page-user')\n",
    "system/grants/test_other.py": "import others\n",
    "support/checks.py": "import deeper\n",
    "support/deeper.py": "BACK = 'keeps'\n",
    "support/everywhere.py": "",
    "support/others.py": "",
    "support/trouble/page-user.c": "",
    "support/trouble/unused.c": "",
    "support/back-ends/keeps.patch": "",
    "support/checks.md": "",
}


def test_what_a_test_uses(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    found = used_by(tmp_path / "system/grants/test_it.py", tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in found} == {
        "system/conftest.py",
        "system/grants/test_it.py",
        "support/checks.py",
        "support/deeper.py",
        "support/everywhere.py",
        "support/trouble/page-user.c",
        "support/back-ends/keeps.patch",
    }


@pytest.mark.parametrize(
    ("test", "uses", "does_not"),
    [
        (
            "grants/test_series_deferred.py",
            {"page_user.c", "guest_modules.py", "told_answers.py", "conftest.py"},
            {"failing.c", "no-cache.patch", "failure_checks.py"},
        ),
        (
            "storage/test_series_flush.py",
            {"cache.patch", "one-request.c", "back_ends.py"},
            {"page_user.c", "failing_calls.py"},
        ),
        (
            "failures/test_failed_calls_back.py",
            {"failing.c", "failure_checks.py", "failing_calls.py"},
            {"page_user.c", "raw_requests.py"},
        ),
    ],
)
def test_what_our_tests_use(test: str, uses: set[str], does_not: set[str]) -> None:
    tests = paths.checkout() / "tests"
    found = {path.name for path in used_by(tests / "system" / test, tests)}
    assert uses <= found, f"not taken for used: {uses - found}"
    assert not does_not & found, f"taken for used: {does_not & found}"
