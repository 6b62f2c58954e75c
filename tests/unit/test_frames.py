"""The framing of the command channel, against any damage on a bad line."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.channel.frames import (
    PAYLOAD_MAX,
    TO_HOST,
    VERSION,
    Damaged,
    Decoder,
    Frame,
    ToHost,
    encode,
    exec_payload,
)
from emu.errors import InputError

NONCE = bytes(range(16))
WELCOME = encode(
    ToHost.WELCOME, 0, 0, struct.pack("<16sIIII", NONCE, VERSION, 4096, 1000, 42), magic=TO_HOST
)

outputs = st.lists(
    st.builds(
        Frame,
        type=st.just(int(ToHost.OUTPUT)),
        stream=st.integers(1, 2),
        id=st.integers(1, 2**32 - 1),
        payload=st.binary(max_size=200),
    ),
    max_size=8,
)


def sent(frames: list[Frame]) -> bytes:
    return b"".join(
        encode(f.type, f.id, seq, f.payload, f.stream, TO_HOST) for seq, f in enumerate(frames, 1)
    )


def received(data: bytes, cuts: list[int]) -> tuple[list[Frame], bool]:
    """The frames decoded from `data` in pieces, and whether damage was found."""
    decoder, got = Decoder(NONCE), list[Frame]()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        try:
            got += decoder.feed(data[start:end])
        except Damaged:
            return got, True
    return got, False


cuts = st.lists(st.integers(0, 2**16), max_size=6)


@given(outputs, cuts, st.binary(max_size=300))
def test_frames_are_decoded_as_they_were_encoded(
    frames: list[Frame], cuts: list[int], noise: bytes
) -> None:
    stale = sent([Frame(int(ToHost.OUTPUT), 1, 9, noise)])[: len(noise)]
    for before in (b"", noise, stale):
        assert received(before + WELCOME + sent(frames), cuts) == (frames, False)


@settings(max_examples=300)
@given(outputs.filter(bool), cuts, st.data())
def test_damage_is_found(frames: list[Frame], cuts: list[int], data: st.DataObject) -> None:
    good = sent(frames)
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["change", "lose", "add", "repeat", "swap"]))
    some = data.draw(st.binary(min_size=1, max_size=40))
    bad = {
        "change": good[:at] + bytes([good[at] ^ (some[0] or 1)]) + good[at + 1 :],
        "lose": good[:at] + good[at + len(some) :],
        "add": good[:at] + some + good[at:],
        "repeat": good + good,
        "swap": sent([*frames[::-1], frames[0]])[: len(good)] + good,
    }[kind]
    got, damaged = received(WELCOME + bad, cuts)
    if kind in ("repeat", "swap"):
        assert damaged
        return
    # What came out before the damage is right, and nothing came out after it. A frame that
    # lost its end, or whose length grew, stays unfinished until more bytes come.
    assert got == frames[: len(got)]
    filler = bad + bytes(PAYLOAD_MAX + 64)
    assert damaged or got == frames or received(WELCOME + filler, cuts)[1]


@given(st.binary(max_size=2000), cuts)
def test_frames_before_the_welcome_are_ignored(noise: bytes, cuts: list[int]) -> None:
    assert received(noise, cuts) == ([], False)
    other = WELCOME.replace(NONCE, bytes(16))
    assert received(noise + other, cuts) == ([], False)


def test_missing_frame_is_found() -> None:
    output = Frame(int(ToHost.OUTPUT), 1, 1, b"x")
    first, second = sent([output]), sent([output, output])[len(sent([output])) :]
    with pytest.raises(Damaged, match="frame 2 came where 1 should"):
        Decoder(NONCE).feed(WELCOME + second)
    assert len(Decoder(NONCE).feed(WELCOME + first + second)) == 2


def test_commands_that_fit_no_frame_are_refused() -> None:
    with pytest.raises(InputError, match="takes 32768"):
        exec_payload([b"sh", b"-c", b"x" * PAYLOAD_MAX], 0)
    for argv in ([], [b"a\0b"]):
        with pytest.raises(InputError):
            exec_payload(argv, 0)
