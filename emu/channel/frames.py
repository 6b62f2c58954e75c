"""The frames between this machine and the guest agent, as pure values.

The guest's end and the layout are in guest-images/agent/wire.h: a header of 24 bytes
(magic, type, stream, command, sequence number, length, CRC-32 of header and payload), then
the payload. A `Decoder` that has seen its welcome accepts frame after frame and nothing
else: a byte lost, added or changed raises `Damaged`.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emu.errors import InputError

VERSION = 1
PAYLOAD_MAX = 32768
NONCE_SIZE = 16

TO_GUEST = 0x91486D45
TO_HOST = 0x92476D45
_TRAILER = 0x93546D45
_HEAD = struct.Struct("<IBBHIII")
_CRC = struct.Struct("<I")
_HELLO = struct.Struct(f"<{NONCE_SIZE}sIIII")
_EXEC = struct.Struct("<HHHHH")
_END = struct.Struct("<QII")

HEADER_SIZE = _HEAD.size + _CRC.size
TRAILER_SIZE = _END.size
PADDING = bytes(HEADER_SIZE + PAYLOAD_MAX)
"""Longer than any frame: completes a frame that an earlier peer has left unfinished."""


class ToGuest(enum.IntEnum):
    """Types of frames the agent takes."""

    HELLO = 1
    BYE = 2
    PING = 3
    EXEC = 4
    STDIN = 5
    STDIN_END = 6
    CREDIT = 7
    SIGNAL = 8
    RESIZE = 9


class ToHost(enum.IntEnum):
    """Types of frames the agent sends."""

    WELCOME = 65
    TROUBLE = 66
    PONG = 67
    OUTPUT = 68
    STDIN_CREDIT = 69
    EXITED = 70


class ExecFlag(enum.IntFlag):
    """How a command is started."""

    PTY = 1
    GENTLE = 2
    """It is ended by SIGTERM, because it has to clean up."""
    NO_STDIN = 4
    SELF = 8
    """The program is the agent itself."""


class ExitKind(enum.IntEnum):
    """What the value of an EXITED frame is."""

    STATUS = 0
    SIGNAL = 1
    NOT_STARTED = 2


class Damaged(Exception):
    """Bytes were lost, added or changed on the way."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `id` is the command it belongs to, `stream` 1 for stdout, 2 for stderr."""

    type: int
    stream: int
    id: int
    payload: bytes

    def numbers(self, layout: str) -> tuple[int, ...]:
        """The payload as the numbers of a struct layout; Damaged when it has another size."""
        try:
            return struct.unpack(layout, self.payload)
        except struct.error:
            raise Damaged(f"a frame of type {self.type} with a wrong size") from None


@dataclass(frozen=True)
class Welcome:
    """The agent's answer to a hello."""

    version: int
    chunk: int
    """The longest payload that suits the link, in bytes."""
    window: int
    """Bytes that may be sent to a standard input before credit comes."""
    pid: int


def encode(
    type: int, id: int, seq: int, payload: bytes = b"", stream: int = 0, magic: int = TO_GUEST
) -> bytes:
    """One frame as bytes."""
    head = _HEAD.pack(magic, type, stream, 0, id, seq, len(payload))
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def hello(nonce: bytes, chunk: int, window: int) -> bytes:
    """A whole HELLO frame: drop the peer before, and answer with this nonce."""
    return encode(ToGuest.HELLO, 0, 0, _HELLO.pack(nonce, VERSION, chunk, window, 0))


def exec_payload(
    argv: Sequence[bytes],
    flags: int,
    cwd: bytes = b"",
    env: Mapping[bytes, bytes] | None = None,
    size: tuple[int, int] = (0, 0),
) -> bytes:
    """The payload of EXEC; `size` is rows and columns of a terminal.

    InputError when it is longer than a frame or a string holds a NUL.
    """
    extra = [name + b"=" + value for name, value in (env or {}).items()]
    strings = [cwd, *argv, *extra]
    if not argv or any(b"\0" in string for string in strings):
        raise InputError("a command needs at least a program, and no NUL in its arguments")
    head = _EXEC.pack(flags, *size, min(len(argv), 0xFFFF), min(len(extra), 0xFFFF))
    payload = head + b"\0".join(strings) + b"\0"
    if len(payload) > PAYLOAD_MAX:
        raise InputError(
            f"a command of {len(payload)} bytes; the channel takes {PAYLOAD_MAX}",
            hint="put a long script into a file, or hand it over as standard input",
        )
    return payload


def trailer(length: int, crc: int) -> bytes:
    """What follows the bytes of a file."""
    return _END.pack(length, crc, _TRAILER)


def is_trailer(data: bytes, length: int, crc: int) -> bool:
    """Whether `data` is the trailer of a file of that length and CRC-32."""
    return data == trailer(length, crc)


class Decoder:
    """Bytes from the agent to frames, after the welcome that answers `nonce`."""

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._buffer = bytearray()
        self._seq = 1
        self.welcome: Welcome | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises Damaged; nothing can follow that."""
        self._buffer += data
        if self.welcome is None and not self._seek():
            return []
        frames = []
        at = 0
        with memoryview(self._buffer) as view:
            while (frame := self._next(view, at)) is not None:
                at += HEADER_SIZE + len(frame.payload)
                if frame.type != ToHost.WELCOME:
                    frames.append(frame)
        del self._buffer[:at]
        return frames

    def _seek(self) -> bool:
        """Drop what comes before the welcome; True once it was found."""
        size = HEADER_SIZE + _HELLO.size
        magic = _CRC.pack(TO_HOST)
        while (at := self._buffer.find(magic)) >= 0:
            del self._buffer[:at]
            if len(self._buffer) < size:
                return False
            _, type_, _, _, _, _, length = _HEAD.unpack_from(self._buffer)
            if type_ == ToHost.WELCOME and length == _HELLO.size:
                body = bytes(self._buffer[:size])
                nonce, version, chunk, window, pid = _HELLO.unpack_from(body, HEADER_SIZE)
                if _crc_right(body) and nonce == self._nonce:
                    self.welcome = Welcome(version, chunk, window, pid)
                    del self._buffer[:size]
                    return True
            del self._buffer[:1]
        del self._buffer[: max(0, len(self._buffer) - len(magic) + 1)]
        return False

    def _next(self, view: memoryview, at: int) -> Frame | None:
        if len(view) - at < HEADER_SIZE:
            return None
        magic, type_, stream, _, id_, seq, length = _HEAD.unpack_from(view, at)
        if magic != TO_HOST:
            raise Damaged("no frame begins where one should")
        if length > PAYLOAD_MAX:
            raise Damaged("a frame longer than any")
        end = at + HEADER_SIZE + length
        if len(view) < end:
            return None
        with view[at:end] as whole:
            if not _crc_right(whole):
                raise Damaged("a frame with a wrong checksum")
            payload = bytes(whole[HEADER_SIZE:])
        if type_ == ToHost.WELCOME:
            return Frame(type_, stream, id_, payload)
        if seq != self._seq:
            raise Damaged(f"frame {seq} came where {self._seq} should")
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return Frame(type_, stream, id_, payload)


def _crc_right(whole: bytes | memoryview) -> bool:
    crc = zlib.crc32(whole[HEADER_SIZE:], zlib.crc32(whole[: _HEAD.size]))
    return bool(crc == _CRC.unpack_from(whole, _HEAD.size)[0])
