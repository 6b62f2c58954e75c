"""What `patched` drivers are: our series, or something else that the environment asks for.

`$EMU_DRIVER_PATCHES` names patches that come after the series (files, or directories of them,
separated by colons), `$EMU_FRONT` and `$EMU_BACK` the module of an end. So whoever changed a
driver runs the tests on it, and `emu mutants` on spoilt ones. The variables are read where a
command or a session of pytest begins (`from_environment`) and nowhere else; they are how the
workers of `pytest -n`, and the `emu` that tests start, get the same drivers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

End = Literal["front", "back"]
MORE_PATCHES = "EMU_DRIVER_PATCHES"
GIVEN: Mapping[End, str] = {"front": "EMU_FRONT", "back": "EMU_BACK"}
"""The environment's variables that change what `patched` is."""


@dataclass(frozen=True)
class PatchedDrivers:
    """What `patched` is, the series of kernels.toml by default.

    `patches` come after the series, each a file or a directory of them; `front` and `back`
    are modules in place of those that are built.
    """

    patches: tuple[Path, ...] = ()
    front: Path | None = None
    back: Path | None = None

    def given(self, end: End) -> Path | None:
        """The module that takes the place of an end's, if there is one."""
        return self.front if end == "front" else self.back


def from_environment(environ: Mapping[str, str] = os.environ) -> PatchedDrivers:
    """What the environment asks for; whether its files exist is checked where they are used."""
    names = filter(None, environ.get(MORE_PATCHES, "").split(os.pathsep))
    front, back = (environ.get(name) for name in (GIVEN["front"], GIVEN["back"]))
    return PatchedDrivers(
        tuple(map(Path, names)), Path(front) if front else None, Path(back) if back else None
    )
