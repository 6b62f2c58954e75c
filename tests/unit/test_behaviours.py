"""docs/behaviours.md names a test for each promise; each test of the drivers has a promise."""

from __future__ import annotations

import pytest
from behaviours import DRIVER_FOLDERS, Promise, document, functions_of, promises

from emu import paths

PROMISES = promises(document().read_text())
SYSTEM = paths.checkout() / "tests/system"


def test_every_promise_has_a_test() -> None:
    without = [promise.text for promise in PROMISES if not promise.tests]
    assert PROMISES, f"{document()} lists nothing"
    assert not without, "promises that no test holds:\n" + "\n".join(without)


def test_every_named_test_exists() -> None:
    known = set(functions_of(SYSTEM))
    wrong = [
        f"{name} ({promise.text})"
        for promise in PROMISES
        for name in promise.tests
        if name not in known
    ]
    assert not wrong, "promises name tests that do not exist:\n" + "\n".join(wrong)


@pytest.mark.parametrize("folder", DRIVER_FOLDERS)
def test_every_test_of_the_drivers_holds_a_promise(folder: str) -> None:
    named = {name for promise in PROMISES for name in promise.tests}
    left = [name for name in functions_of(SYSTEM / folder) if name not in named]
    assert not left, f"tests in {folder}/ hold nothing that is listed:\n" + "\n".join(left)


def test_promises_are_read() -> None:
    text = """# Title

Text with `code`.

## Flush

- Each fsync sends a flush.
  It is sent last. (`test_flush.py::test_each`,
  `test_flush.py::test_last`)
- A line without a test.

    - no item
"""
    assert promises(text) == [
        Promise(
            "Each fsync sends a flush. It is sent last.",
            ("test_flush.py::test_each", "test_flush.py::test_last"),
        ),
        Promise("A line without a test.", ()),
    ]
