"""Kernel configurations: what was asked for, what came of it, what this rig cannot do without."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError


@dataclass(frozen=True)
class Requirements:
    """Options that every kernel must have: built in, as modules, or either."""

    built_in: tuple[str, ...]
    modules: tuple[str, ...]
    either: tuple[str, ...]


def read_config(text: str) -> dict[str, str]:
    """Options of a .config or a fragment: CONFIG_X to its value, "n" if it is not set.

    A later line counts.
    """
    found = re.findall(r"^(?:# (CONFIG_\w+) is not set|(CONFIG_\w+)=(.*))$", text, re.MULTILINE)
    return {unset or option: "n" if unset else value for unset, option, value in found}


def check_fragment(fragment: str, config: str) -> None:
    """Raise InputError naming the options of `fragment` that are otherwise in `config`.

    kconfig silently drops an option when a dependency is missing.
    """
    final = read_config(config)
    lost = [
        f"{option}={wanted} became {final.get(option, 'n')}"
        for option, wanted in read_config(fragment).items()
        if final.get(option, "n") != wanted
    ]
    if lost:
        raise InputError(
            f"kconfig did not take {len(lost)} of the options asked for",
            lines=lost,
            hint="something each depends on is missing, or this kernel does not have it",
        )


def check_requirements(config: Path, asked: Requirements) -> None:
    """Raise InputError naming the options a kernel lacks for this rig."""
    final = read_config(config.read_text())
    lacks = [f"{option}=y" for option in asked.built_in if final.get(option) != "y"]
    lacks += [f"{option}=m" for option in asked.modules if final.get(option) != "m"]
    lacks += [f"{option}=y or m" for option in asked.either if final.get(option) not in ("y", "m")]
    if lacks:
        raise InputError(f"{config} lacks what this rig needs of a kernel", lines=lacks)
