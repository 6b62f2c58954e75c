"""What `patched` drivers are: our series, or something else that somebody asks for.

Options of a command or of pytest ask for it, or the environment: it is how the workers of
`pytest -n`, and the `emu` that tests start, get the same drivers. The variables are read where a
command or a session of pytest begins (`from_environment`) and nowhere else.

    EMU_DRIVER_PATCHES  patches (files, maildirs, directories, separated by colons) …
    EMU_DRIVERS_ON      … after the "series" (default), or on the "stock" source
    EMU_TREE_DRIVERS    a kernel tree whose drivers are taken in place of the kernel's own
    EMU_FRONT, EMU_BACK the module of an end, in place of what would be built
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from emu.errors import InputError

End = Literal["front", "back"]
Base = Literal["series", "stock"]
BASES: tuple[Base, ...] = get_args(Base)
MORE_PATCHES, ON, TREE = "EMU_DRIVER_PATCHES", "EMU_DRIVERS_ON", "EMU_TREE_DRIVERS"
GIVEN: Mapping[End, str] = {"front": "EMU_FRONT", "back": "EMU_BACK"}
"""The environment's variables that change what `patched` is."""
VARIABLES = (MORE_PATCHES, ON, TREE, *GIVEN.values())


@dataclass(frozen=True)
class PatchedDrivers:
    """What `patched` is, the series of kernels.toml by default.

    `patches` are applied after what `on` says: the series, or nothing ("stock"; the default
    with `tree`). `tree` is a kernel tree whose drivers are taken; `front` and `back` are modules
    in place of those that are built. `counted`: what is built has counters (emu.images.counted),
    which no variable of the environment asks for.
    """

    patches: tuple[Path, ...] = ()
    front: Path | None = None
    back: Path | None = None
    on: Base | None = None
    tree: Path | None = None
    counted: bool = False

    def __post_init__(self) -> None:
        if self.on is not None and not self.patches and self.tree is None:
            raise InputError(
                f"drivers on {self.on} without patches",
                hint="name them: --driver-patches FILE; for the unpatched drivers themselves: "
                "--front stock --back stock",
            )

    @property
    def base(self) -> Base:
        """What the patches are applied on, resolved."""
        return self.on or ("series" if self.tree is None else "stock")

    def given(self, end: End) -> Path | None:
        """The module that takes the place of an end's, if there is one."""
        return self.front if end == "front" else self.back

    def but(self, patches: Sequence[Path], on: Base | None, tree: Path | None) -> PatchedDrivers:
        """The same, but for what options say. Raises InputError for a base without patches."""
        return replace(
            self, patches=tuple(patches) or self.patches, on=on or self.on, tree=tree or self.tree
        )

    def environ(self) -> dict[str, str]:
        """The variables that ask for the same, with absolute paths.

        Raises InputError for a patch whose name has the separator of paths in it.
        """
        if odd := [path for path in self.patches if os.pathsep in str(path.absolute())]:
            raise InputError(
                f"{odd[0].absolute()} has a {os.pathsep!r} in its name, which separates the paths "
                f"in ${MORE_PATCHES}",
                hint="give it another name, or its directory",
            )
        asked = {
            MORE_PATCHES: os.pathsep.join(str(path.absolute()) for path in self.patches),
            ON: self.on or "",
            TREE: str(self.tree.absolute()) if self.tree else "",
            **{GIVEN[end]: str(path.absolute()) for end, path in self._modules() if path},
        }
        return {name: value for name, value in asked.items() if value}

    def _modules(self) -> tuple[tuple[End, Path | None], ...]:
        return ("front", self.front), ("back", self.back)


def from_environment(environ: Mapping[str, str] = os.environ) -> PatchedDrivers:
    """What the environment asks for; whether its files exist is checked where they are used.

    Raises InputError for a base that there is not.
    """
    names = filter(None, environ.get(MORE_PATCHES, "").split(os.pathsep))
    front, back, tree = (environ.get(name) for name in (GIVEN["front"], GIVEN["back"], TREE))
    on = environ.get(ON) or None
    if on is not None and on not in BASES:
        raise InputError(f"${ON} is {on!r}", hint=f"it can be {' or '.join(BASES)}")
    return PatchedDrivers(
        tuple(map(Path, names)),
        Path(front) if front else None,
        Path(back) if back else None,
        on,
        Path(tree) if tree else None,
    )
