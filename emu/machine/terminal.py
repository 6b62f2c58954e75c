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

    def feed(self, data: bytes, final: bool = False) -> str:
        """The text of one more chunk; what can't be decided yet is held back."""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final:
            keep = _undecided(text)
            text, self._held = text[:keep], text[keep:]
        if "\x1b" in text:
            text = _ESCAPE.sub("", text)
        return _CONTROL.sub("", _LINE_END.sub("\n", text))


def _undecided(text: str) -> int:
    """Where the part of `text` begins that needs more text to be understood."""
    at = text.find("\x1b")
    while at >= 0:
        match = _ESCAPE.match(text, at)
        if match is None and len(text) - at < _LONGEST_ESCAPE:
            return at
        at = text.find("\x1b", match.end() if match else at + 1)
    if text.endswith("\r"):
        return len(text.rstrip("\r"))
    return len(text)
