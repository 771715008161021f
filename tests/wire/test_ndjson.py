"""Lines are the same however the bytes arrive, and none is held longer than it may be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.wire.ndjson import Splitter
from meshd.wire.sse import EventTooLarge

CASES = [
    (b'{"a":1}\n{"b":2}\n', [b'{"a":1}\n', b'{"b":2}\n'], b""),
    (b'{"a":"\\n"}\r\n{"b":2}', [b'{"a":"\\n"}\r\n'], b'{"b":2}'),
    (b"\n\n{}\n", [b"\n", b"\n", b"{}\n"], b""),
    (b"", [], b""),
    (b"half", [], b"half"),
]


def split(pieces: list[bytes], event_bytes_max: int = 1024) -> tuple[list[bytes], bytes]:
    splitter = Splitter(event_bytes_max)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines, splitter.rest()


@pytest.mark.parametrize(("stream", "lines", "rest"), CASES)
def test_every_cut_gives_the_same_lines(stream: bytes, lines: list[bytes], rest: bytes) -> None:
    assert split([stream[i : i + 1] for i in range(len(stream))]) == (lines, rest)
    for cut in range(len(stream) + 1):
        assert split([stream[:cut], stream[cut:]]) == (lines, rest)


@given(
    stream=st.lists(st.sampled_from([b"{}", b"\n", b"\r\n", b'"x"', b"\xff"])).map(b"".join),
    cuts=st.lists(st.integers(0, 99)),
)
def test_no_split_loses_a_byte(stream: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    lines, rest = split([stream[a:b] for a, b in itertools.pairwise(borders)])
    assert (lines, rest) == split([stream])
    assert b"".join(lines) + rest == stream
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)


def test_one_line_is_handed_on_without_a_copy() -> None:
    data = b'{"done":false}\n'
    assert Splitter().feed(data)[0] is data


@pytest.mark.parametrize("ending", [b"\n", b""])
@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_a_line_that_is_too_long_raises_before_more_is_held(ending: bytes, piece_bytes: int) -> None:
    stream = b"{}\n" + b"x" * 500 + ending
    with pytest.raises(EventTooLarge, match="256"):
        split([stream[begin : begin + piece_bytes] for begin in range(0, len(stream), piece_bytes)], 256)


def test_a_line_of_just_the_limit_passes() -> None:
    line = b"x" * 15 + b"\n"
    assert split([line[:5], line[5:]], 16) == split([line], 16) == ([line], b"")
    with pytest.raises(EventTooLarge):
        split([line], 15)
