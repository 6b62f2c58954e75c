"""A disk as xl gives it to a domU (xl-disk-configuration(5))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from emu.errors import InputError
from emu.xen import vdev

Mode = Literal["r", "w"]
"""What a domU may do with a disk: read it alone, or write to it, too."""
_SCRIPT = "block-emu"


@dataclass(frozen=True)
class DiskOptions:
    """How a domU gets a disk.

    `mode` "r": it may not write. `cdrom`: as a CD-ROM, which only mode "r" can be. `discard`:
    whether the back end may offer discards (None: as the LUN has them). `trusted` False: its back
    end is not to see more of the domU's memory than it is to move; xl 4.17 has no word for that,
    so it is written to xenstore, and forgotten when the domU is saved. `partition`: that of the
    LUN, as dom0 has it, in place of the whole.
    """

    mode: Mode = "w"
    cdrom: bool = False
    discard: bool | None = None
    trusted: bool = True
    partition: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("r", "w"):
            raise InputError(f"a disk's mode is r or w, not {self.mode!r}")
        if self.cdrom and self.mode != "r":
            raise InputError("a CD-ROM can't be written", hint='mode="r"')
        if self.partition is not None and self.partition < 1:
            raise InputError(f"the first partition has the number 1, not {self.partition}")

    def words(self, device: str, name: str) -> str:
        """xl's words for a device of dom0 as the disk `name`. Raises InputError for its name."""
        vdev.parse(name)
        found = [f"phy:{device}{self.partition or ''}", name, self.mode]
        if self.cdrom:
            found.append("devtype=cdrom")
        if self.discard is not None:
            found.append("discard" if self.discard else "no-discard")
        return ",".join([*found, f"script={_SCRIPT}"])


class DiskWords(TypedDict, total=False):
    """The fields of `DiskOptions`, for who passes some of them on."""

    mode: Mode
    cdrom: bool
    discard: bool | None
    trusted: bool
    partition: int | None


PLAIN = DiskOptions()
_WORDS: dict[str, tuple[str, object]] = {
    "r": ("mode", "r"),
    "w": ("mode", "w"),
    "cdrom": ("cdrom", True),
    "discard": ("discard", True),
    "no-discard": ("discard", False),
    "untrusted": ("trusted", False),
}


@dataclass(frozen=True)
class NamedDisk:
    """A disk by the `name` that xl gives it, "xvda" or any other of `emu.xen.vdev`."""

    name: str = "xvda"
    options: DiskOptions = PLAIN

    def __post_init__(self) -> None:
        vdev.parse(self.name)

    @property
    def block(self) -> str:
        """Linux' name for it in the domU."""
        return vdev.parse(self.name).linux


FIRST = NamedDisk()


def parse_disk(text: str) -> NamedDisk:
    """Read "hda,r,cdrom": a name, and what else is to be known of it, separated by commas.

    Raises InputError for a name or a word that is none, and for words that exclude each other.
    """
    name, *words = text.split(",")
    fields: dict[str, object] = {}
    for word in words:
        if word not in _WORDS:
            raise InputError(f"{word!r} says nothing of a disk: {', '.join(_WORDS)} do")
        field, value = _WORDS[word]
        if fields.setdefault(field, value) != value:
            raise InputError(f"{text!r} says two things of one: {word!r} is the other")
    return NamedDisk(name, DiskOptions(**fields))  # type: ignore[arg-type]
