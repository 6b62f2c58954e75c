"""`--emu-wishes FILE`: which stacks the collected tests need, for `emu prepare`.

    pytest --collect-only --emu-wishes wishes.json …

The file has a list of objects, one for each kind of stack: `wish` (the fields of a `Wish`),
`two_hosts` (whether it is a pair), `tests` (how many tests need it); beside it, the environment
that passes on the options (emu.pytestplugin.options).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from emu.emulator import choice as emulator
from emu.errors import InputError
from emu.images.patched import GIVEN, MORE_PATCHES
from emu.lab.wish import Wish
from emu.pytestplugin.marks import wish_for

PASSED_ON = (emulator.GIVEN, MORE_PATCHES, *GIVEN.values())


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


def wishes_of(items: list[pytest.Item]) -> dict[str, object]:
    """What `--emu-wishes` writes."""
    needed: Counter[tuple[Wish, bool]] = Counter()
    for item in items:
        if (need := _need(item)) is not None:
            needed[need] += 1
    return {
        "environ": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "stacks": [
            {"wish": asdict(wish), "two_hosts": two_hosts, "tests": tests}
            for (wish, two_hosts), tests in needed.items()
        ],
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
