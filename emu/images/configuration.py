"""The configuration of a kernel that is built here: the lab's fragments, or somebody's file.

The lab's is what its fragments name, on top of allnoconfig. A file of somebody's (`--config`) is
a whole .config, which `make olddefconfig` brings to the version of the source, or a fragment,
which comes after the lab's. A whole .config gets what it lacks of what the rig must have, and
loses what only a distribution's build can have (kernels.toml, `requires` and `completes`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emu.errors import InputError
from emu.images import kbuild
from emu.images.kconfig import (
    Completion,
    Requirements,
    check_fragment,
    check_requirements,
    lost_options,
    read_config,
)
from emu.images.kernel_specs import completion, requirements, specs
from emu.images.manifest import JSON
from emu.progress import Progress

NOTES = "configuration.json"
"""The file of a kernel that says what its configuration was made of."""
_WHOLE = re.compile(r"^CONFIG_(X86|X86_64|CC_IS_GCC|CC_IS_CLANG)=y$", re.MULTILINE)
"""Options that a whole .config has, and a fragment has no reason to."""
_OPTION = re.compile(r"^(?:CONFIG_\w+=\S|# CONFIG_\w+ is not set$)", re.MULTILINE)
"""A line of a configuration; a makefile has others (CONFIG_SHELL := sh)."""
_SHOWN = 8
"""Options that a line on the screen names."""
_OF_TREES = '\nCONFIG_LOCALVERSION=""\nCONFIG_BASIC_MODVERSIONS=y\n'
"""What trees have beside the lab's fragments: a name of their own, and (from 6.14 on, where
allnoconfig leaves it off) the versions without which no module is loaded."""

Make = Callable[..., list[str]]
"""make in the source of the kernel; it raises InputError."""


@dataclass(frozen=True)
class Configuration:
    """What a kernel is configured from: the lab's `fragments`, in order, and a file of somebody's.

    The lab kernels take all options of their fragments or are not built (`strict`). Another tree
    may not know one: that is said, and is an error only where the rig needs the option.
    """

    fragments: tuple[Path, ...]
    own: Path | None = None
    text: str = ""
    """What the file holds: it is read once."""
    strict: bool = True

    @property
    def whole(self) -> bool:
        """Whether the file takes the place of the fragments."""
        return _WHOLE.search(self.text) is not None

    def __str__(self) -> str:
        if self.own is None:
            return "lab configuration"
        return f"{self.own}, completed" if self.whole else f"lab configuration and {self.own}"

    def inputs(self) -> dict[str, JSON]:
        """What a kernel depends on, for cache keys."""
        own = [] if self.own is None else [hashlib.sha256(self.text.encode()).hexdigest()]
        if self.whole:
            return {"config": own, "completed": {**vars(requirements()), **vars(completion())}}
        return {"config": [*kbuild.digest(self.fragments), *own]}

    def apply(self, tree: Path, make: Make, what: str, progress: Progress) -> dict[str, JSON]:
        """Write `tree`/.config; what was added, and what did not take, option by option.

        `what` is the kernel's name. Raises InputError naming the options that the rig needs and
        that did not take.
        """
        added, lost = dict[str, str](), list[str]()
        if self.whole:
            added = self._complete(tree, make)
        else:
            lost = self._combine(tree, make)
        if added:
            progress.note(f"{self.own}: {_listed(added)} {'were' if len(added) > 1 else 'was'} set")
        if lost:
            progress.note(f"{what}: kconfig did not take {', '.join(lost)}")
        of = f"{what}, configured with {self},"
        check_requirements(tree / ".config", requirements(), of)
        return {"from": str(self), "added": added, "lost": lost}

    def _complete(self, tree: Path, make: Make) -> dict[str, str]:
        """Configure with the file; what it did not have so."""
        more = completed(read_config(self.text), requirements(), completion())
        lines = [f"{name}={value}" for name, value in more.items()]
        final = tree / ".config"
        final.write_text("\n".join([self.text, *lines, ""]))
        make("olddefconfig")
        taken = read_config(final.read_text())
        return {name: value for name, value in more.items() if taken.get(name, "n") == value}

    def _combine(self, tree: Path, make: Make) -> list[str]:
        """Configure with the fragments, and the file after them; what did not take."""
        asked = "\n".join([*(path.read_text() for path in self.fragments), self.text])
        fragment = tree / ".emu-fragment"
        fragment.write_text(asked if self.strict else asked + _OF_TREES)
        make("allnoconfig", f"KCONFIG_ALLCONFIG={fragment}")
        fragment.unlink()
        config = (tree / ".config").read_text()
        if self.strict:
            check_fragment(asked, config)
        given = read_config(_OF_TREES)
        return [line for line in lost_options(asked, config) if line.partition("=")[0] not in given]


def for_tree(line: str, own: Path | None) -> Configuration:
    """The configuration of a tree of this release line ("7.3"), perhaps with a file of somebody's.

    The lab's of the newest line that is not newer, or of the oldest. Raises InputError for a file
    that is not there, or is no configuration.
    """
    labs = [one for one in specs().values() if one.name == f"lab-{one.version}"]
    lines = {_numbers(one.version): one for one in labs}
    older = [number for number in lines if number <= _numbers(line)]
    chosen = lines[max(older, default=min(lines))]
    text = "" if own is None else _read(own)
    if own is not None and not _OPTION.search(text):
        raise InputError(
            f"{own} is no kernel configuration: it has no line CONFIG_…",
            hint="give a .config, or a fragment with the options that the lab's lacks",
        )
    return Configuration(chosen.config, own, text, strict=False)


def completed(given: Mapping[str, str], requires: Requirements, also: Completion) -> dict[str, str]:
    """The options that a whole .config has to have otherwise, with their values, in order.

    What is a module may stay one, but for the two drivers, which must be.
    """
    asked = {option: "y" for option in also.built_in if given.get(option, "n") == "n"}
    asked |= {option: "y" for option in requires.either if given.get(option, "n") == "n"}
    asked |= {option: "y" for option in requires.built_in if given.get(option) != "y"}
    asked |= {option: "m" for option in requires.modules if given.get(option) != "m"}
    unset = {option: value for option, value in also.replaced if given.get(option, value) != value}
    return asked | unset


def notes_of(kernel: Path) -> Mapping[str, JSON]:
    """What `apply` returned for a kernel that is in the cache; nothing for one without."""
    try:
        notes: Mapping[str, JSON] = json.loads((kernel / NOTES).read_text())
    except (OSError, ValueError):
        return {}
    return notes


def _listed(options: Mapping[str, str]) -> str:
    """Some options with their values, in a line."""
    words = [f"{name}={value}" for name, value in options.items()]
    more = len(words) - _SHOWN
    return ", ".join([*words[:_SHOWN], *([f"{more} more"] if more > 0 else [])])


def _numbers(line: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", line))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"there is no configuration {path}: {error.strerror}") from error
