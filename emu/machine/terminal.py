"""From a console's bytes to text: invalid UTF-8, escape sequences, carriage returns."""

from __future__ import annotations

import codecs
import re

_ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles
    r"|\x1b[PX^_][^\x1b]*\x1b\\"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"  # the short ones
)
_LONGEST_ESCAPE = 256
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LINE_END = re.compile(r"\r+\n|\r")


class Cleaner:
    """Turns chunks of bytes into clean text, wherever the chunks were cut.

    Invalid UTF-8 becomes U+FFFD; escape sequences and control characters other than tab
    go; CR LF (in any number of CR) and a lone CR become one newline.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._returns = ""
        """Carriage returns at the end so far: a newline after them makes no second line, whatever
        escape sequences stand between."""

    def feed(self, data: bytes, final: bool = False) -> str:
        """The text of one more chunk; what can't be decided yet is held back."""
        text = self._held + self._decoder.decode(data, final)
        keep = len(text) if final else _undecided(text)
        text, self._held = text[:keep], text[keep:]
        text = self._returns + _ESCAPE.sub("", text)
        keep = len(text) if final else len(text.rstrip("\r"))
        text, self._returns = text[:keep], text[keep:]
        return _CONTROL.sub("", _LINE_END.sub("\n", text))


def _undecided(text: str) -> int:
    """Where the escape sequence begins that may not be whole yet."""
    at = text.find("\x1b")
    while at >= 0:
        match = _ESCAPE.match(text, at)
        if match is None and len(text) - at < _LONGEST_ESCAPE:
            return at
        at = text.find("\x1b", match.end() if match else at + 1)
    return len(text)
