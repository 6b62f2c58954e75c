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


@dataclass(frozen=True)
class Completion:
    """What a .config of somebody's gets beside the requirements.

    `built_in`: what these depend on, and what the guests' programs use; set where it is not, if
    the kernel has it. `replaced`: options with the value that they must not differ from.
    """

    built_in: tuple[str, ...]
    replaced: tuple[tuple[str, str], ...]


def read_config(text: str) -> dict[str, str]:
    """Options of a .config or a fragment: CONFIG_X to its value, "n" if it is not set.

    A later line counts.
    """
    found = re.findall(r"^(?:# (CONFIG_\w+) is not set|(CONFIG_\w+)=(.*))$", text, re.MULTILINE)
    return {unset or option: "n" if unset else value for unset, option, value in found}


def lost_options(fragment: str, config: str) -> list[str]:
    """The options of `fragment` that are otherwise in `config`, and what they became.

    kconfig silently drops an option when a dependency is missing.
    """
    final = read_config(config)
    return [
        f"{option}={wanted} became {final.get(option, 'n')}"
        for option, wanted in read_config(fragment).items()
        if final.get(option, "n") != wanted
    ]


def check_fragment(fragment: str, config: str) -> None:
    """Raise InputError naming the options of `fragment` that are otherwise in `config`."""
    if lost := lost_options(fragment, config):
        raise InputError(
            f"kconfig did not take {len(lost)} of the options asked for",
            lines=lost,
            hint="something each depends on is missing, or this kernel does not have it",
        )


def check_requirements(config: Path, asked: Requirements, what: str = "") -> None:
    """Raise InputError naming the options that a kernel (`what`) lacks for this rig."""
    final = read_config(config.read_text())
    lacks = [
        f"{option}={' or '.join(values)}: it is {final.get(option, 'n')}"
        for options, values in (
            (asked.built_in, ("y",)),
            (asked.modules, ("m",)),
            (asked.either, ("y", "m")),
        )
        for option in options
        if final.get(option, "n") not in values
    ]
    if lacks:
        raise InputError(f"{what or config} lacks what this rig needs of a kernel", lines=lacks)
