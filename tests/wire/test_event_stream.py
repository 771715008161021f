"""Frames are the same however the bytes arrive; a wrong checksum or length is found before anything is made of it."""

from __future__ import annotations

import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.wire.event_stream import FrameBroken, Splitter, decode, encode
from meshd.wire.sse import EventTooLarge
from tests.wire.frames import chunk, event, frame, text_header

TYPED = (
    b"\x01a\x00\x01b\x01\x01c\x02\x07\x01d\x03\x00\x07\x01e\x04" + bytes(4) + b"\x01f\x05" + bytes(8)
    + b"\x01g\x06\x00\x02xy" + text_header("h", "text \u6f6e") + b"\x01i\x08" + bytes(8) + b"\x01j\x09" + bytes(16)
)  # fmt: skip
FRAMES = [event(b'{"x":1}'), frame(b"", b""), chunk({"type": "ping"}), frame(TYPED, b"payload")]


def split(pieces: list[bytes], event_bytes_max: int = 4096) -> tuple[list[bytes], bytes]:
    splitter = Splitter(event_bytes_max)
    frames = [one for piece in pieces for one in splitter.feed(piece)]
    return frames, splitter.rest()


def test_every_cut_gives_the_same_frames() -> None:
    stream = b"".join(FRAMES) + FRAMES[0][:20]
    assert split([stream[i : i + 1] for i in range(len(stream))]) == (FRAMES, FRAMES[0][:20])
    for cut in range(len(stream) + 1):
        assert split([stream[:cut], stream[cut:]]) == (FRAMES, FRAMES[0][:20])


def test_headers_of_every_type_are_passed_over_and_text_is_read() -> None:
    found = decode(frame(TYPED, b"payload"))
    assert found is not None
    assert found.headers == {"h": "text \u6f6e"}
    assert found.payload == b"payload"


@given(st.dictionaries(st.text(alphabet="abc:-", min_size=1, max_size=9), st.text(max_size=9)), st.binary(max_size=50))
def test_what_is_encoded_is_what_others_encode(headers: dict[str, str], payload: bytes) -> None:
    made = encode(headers, payload)
    assert made == event(payload, list(headers.items()))
    assert split([made]) == ([made], b"")
    assert decode(made) == (headers, payload)


@given(at=st.integers(0, len(FRAMES[0]) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(at: int, bit: int) -> None:
    broken = bytearray(FRAMES[0])
    broken[at] ^= 1 << bit
    with pytest.raises((FrameBroken, EventTooLarge)):
        split([bytes(broken) + FRAMES[1]])


@given(stream=st.binary(max_size=80), cuts=st.lists(st.integers(0, 80)))
def test_nonsense_is_held_or_found_out(stream: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    try:
        frames, rest = split([stream[a:b] for a, b in itertools.pairwise(borders)])
    except (FrameBroken, EventTooLarge):
        return
    assert b"".join(frames) + rest == stream
    assert len(rest) < 12


def lengths(total: int, headers: int) -> bytes:
    prelude = struct.pack(">II", total, headers)
    return prelude + struct.pack(">I", zlib.crc32(prelude))


@pytest.mark.parametrize(("total", "headers"), [(15, 0), (0, 0), (16, 1), (100, 85), (3 << 20, 1 << 20)])
def test_lengths_that_contradict_each_other_are_found_at_once(total: int, headers: int) -> None:
    with pytest.raises(FrameBroken, match="contradict"):
        split([lengths(total, headers)], 4 << 20)


def test_a_frame_that_is_too_long_raises_before_it_is_held() -> None:
    with pytest.raises(EventTooLarge, match="100"):
        split([lengths(101, 0)], 100)
    assert split([lengths(100, 0)], 100) == ([], lengths(100, 0))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        FRAMES[0][:-1],
        frame(b"\x01a", b""),
        frame(b"\x01a\x63", b""),
        frame(b"\x01a\x07\x00\x09x", b""),
        frame(b"\x01\xff\x00", b""),
        frame(b"\x40a", b""),
        frame(b"\x01a\x07\x00", b""),
    ],
)
def test_headers_that_are_nonsense_are_no_frame(raw: bytes) -> None:
    assert decode(raw) is None
