"""xenstore as a tree of frozen values, read from `xenstore-ls -f`, or ours (emu-xenstore)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from emu.errors import GuestError, RigError

_LINE = re.compile(r'^(/\S*) = "((?:[^"\\]|\\.)*)"$')
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{3}|.)")
_NAMED = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}

XENBUS_STATES = {
    0: "Unknown",
    1: "Initialising",
    2: "InitWait",
    3: "Initialised",
    4: "Connected",
    5: "Closing",
    6: "Closed",
    7: "Reconfiguring",
    8: "Reconfigured",
}
"""The states of a device's two ends (Xen's public header io/xenbus.h)."""
_STATE_NUMBERS = {name: number for number, name in XENBUS_STATES.items()}


def state_of(path: str, value: str | None) -> str:
    """The xenbus state that `path` holds, as a word; "absent" where it does not exist.

    Raises GuestError when it holds no number.
    """
    if value is None:
        return "absent"
    number = _number(path, value)
    return XENBUS_STATES.get(number, f"state {number}")


def state_number(name: str) -> int:
    """The number of a xenbus state, by its name. Raises KeyError for an unknown one."""
    return _STATE_NUMBERS[name]


def _number(path: str, value: str) -> int:
    try:
        return int(value, 10)
    except ValueError:
        raise GuestError(f"xenstore {path} holds {value!r}, not a number") from None


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        code = match.group(1)
        if code[0] == "x":
            return chr(int(code[1:], 16))
        if len(code) == 3:
            return chr(int(code, 8))
        return _NAMED.get(code, code)

    return _ESCAPE.sub(one, text)


@dataclass(frozen=True)
class XenstoreTree:
    """A part of xenstore at one instant: absolute path → value.

    `root` is the path it was read from; `get` and `sub` take paths relative to it.
    """

    root: str
    values: Mapping[str, str]

    def get(self, path: str, default: str | None = None) -> str | None:
        """The value at `root`/`path`, or `default` where there is none."""
        return self.values.get(self._absolute(path), default)

    def integer(self, path: str) -> int | None:
        """The value at `path` as a decimal number; None where it is absent.

        Raises GuestError when it holds no number.
        """
        value = self.get(path)
        return None if value is None else _number(self._absolute(path), value)

    def state(self) -> str:
        """The xenbus state of the device directory this tree is, as a word."""
        return state_of(self._absolute("state"), self.get("state"))

    def sub(self, path: str) -> XenstoreTree:
        """The tree below `path`."""
        root = self._absolute(path)
        inside = {p: v for p, v in self.values.items() if p == root or p.startswith(root + "/")}
        return XenstoreTree(root, MappingProxyType(inside))

    def children(self) -> tuple[str, ...]:
        """Names directly below the root, in the order xenstore gave them."""
        prefix = self.root.rstrip("/") + "/"
        names = (p[len(prefix) :].split("/", 1)[0] for p in self.values if p.startswith(prefix))
        return tuple(dict.fromkeys(names))

    def __bool__(self) -> bool:
        return bool(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def _absolute(self, path: str) -> str:
        return self.root if not path else f"{self.root.rstrip('/')}/{path}"


def parse(text: str, root: str) -> XenstoreTree:
    """Read the output of `xenstore-ls -f ROOT` (one `path = "value"` a line).

    Values are unescaped as xenstore-ls wrote them (C escapes for what is not printable).
    Raises RigError for a line of any other form.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            raise RigError(f"a line of xenstore-ls -f that is no key: {line!r}")
        values[match.group(1)] = _unescape(match.group(2))
    return XenstoreTree(root, MappingProxyType(values))
