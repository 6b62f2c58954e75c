"""Which stacks the collected tests need: reported where a long build is due, and for `emu prepare`.

    pytest --collect-only --emu-wishes wishes.json …

writes an object: `stacks` has one for each kind of stack, with `wish` (the fields of a `Wish`),
`two_hosts` (whether it is a pair) and `tests` (how many tests need it); `environ` is the
environment that passes on the options (emu.pytestplugin.options).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from emu.emulator import choice as emulator
from emu.errors import EmuError, InputError
from emu.images.cache import Cache
from emu.images.context import BuildContext
from emu.images.patched import VARIABLES
from emu.images.replaced import INSIST
from emu.pytestplugin.marks import wish_for
from emu.stack.wish import Wish
from emu.suite import preparing
from emu.suite.preparing import Need

PASSED_ON = (emulator.GIVEN, INSIST, *VARIABLES)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("emu").addoption(
        "--emu-wishes",
        dest="emu_wishes",
        metavar="FILE",
        help="write which stacks the collected tests need, as JSON; for `emu prepare`",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    if path := session.config.getoption("emu_wishes"):
        Path(path).write_text(json.dumps(wishes_of(session.items), indent=1))


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    """Name the tests that wait for a long build. With `-n` only the workers collect: not then."""
    if not (needs := needs_of(items)):
        return []
    try:
        steps = preparing.long_builds(needs, BuildContext(Cache()))
    except EmuError:  # no cache: the tests report that
        return []
    hint = ["`emu prepare` builds that before the tests run"] if steps else []
    return [*map(str, steps), *hint]


def needs_of(items: list[pytest.Item]) -> list[Need]:
    """The stacks that tests need."""
    needed = Counter(need for item in items if (need := _need(item)) is not None)
    return [Need(wish, two_hosts, tests) for (wish, two_hosts), tests in needed.items()]


def wishes_of(items: list[pytest.Item]) -> dict[str, object]:
    """What `--emu-wishes` writes."""
    return {
        "environ": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "stacks": [asdict(need) for need in needs_of(items)],
    }


def _need(item: pytest.Item) -> tuple[Wish, bool] | None:
    fixtures = set(getattr(item, "fixturenames", ()))
    try:
        if "emu_two_hosts" in fixtures:
            return wish_for(item), True
        if "emu_stack" in fixtures:
            return wish_for(item), False
        # Whoever makes the stack itself makes the default one, with few exceptions.
        return (Wish(), False) if "emu_prepared" in fixtures else None
    except InputError:
        return None  # the test's own set-up reports it
