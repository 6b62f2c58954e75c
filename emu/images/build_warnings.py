"""The compiler's warnings about drivers with somebody's patches: kept with the modules.

Shown are those that the patches add: what the compiler says without them is not theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emu.images.build_errors import owner_of, owners_of
from emu.images.compiler_messages import (
    Message,
    messages_as_json,
    messages_of_json,
    new_messages,
    read_messages,
)
from emu.images.driver_patches import in_kernel
from emu.images.driver_recipe import Version
from emu.images.driver_source import BACK, FRONT
from emu.images.patched import End

FILE = "messages.json"
"""In a cache entry with two modules: what was printed when they were built."""


@dataclass(frozen=True)
class BuildWarning:
    """A warning that patches add; `patch` names the one that wrote its line, where one did."""

    file: str
    line: int | None
    text: str
    patch: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.text}" + (f"  [line of {self.patch}]" if self.patch else "")

    def is_of(self, end: End) -> bool:
        """Whether it is about this end's driver, or about both."""
        other = BACK if end == "front" else FRONT
        return not self.file.startswith(other)


def keep(output: Sequence[str], versions: Sequence[Version], made: Path) -> None:
    """Write what make printed into the entry `made`; `versions` are those of `apply_all`."""
    # From 6.13 on make runs in the directory of the drivers, and names files from there.
    messages = [replace(one, file=in_kernel(one.file)) for one in read_messages(output)]
    owners = {name: owners_of(name, versions) for name in {one.file for one in messages}}
    patches = [str(owner_of(one, owners) or "") for one in messages]
    kept = {"messages": messages_as_json(messages), "patches": patches}
    (made / FILE).write_text(json.dumps(kept, indent=1))


def added(entry: Path, base: Callable[[], Path]) -> tuple[BuildWarning, ...]:
    """The warnings of an entry that the entry of its base has not.

    `base` is asked for where there are any: it has to be built.
    """
    messages, patches = _read(entry)
    if not messages:
        return ()
    before, _ = _read(base())
    of = dict(zip(map(id, messages), patches, strict=True))
    return tuple(
        BuildWarning(one.file, one.line, one.text, of[id(one)])
        for one in new_messages(before, messages)
    )


def _read(entry: Path) -> tuple[tuple[Message, ...], list[str]]:
    kept = json.loads((entry / FILE).read_text())
    return messages_of_json(kept["messages"]), kept["patches"]
