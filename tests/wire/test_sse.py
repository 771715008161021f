"""The splitter gives the same events however the bytes arrive, and never more than it may hold."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.wire.sse import EventTooLarge, Splitter, data_of, name_of

CASES = [
    (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"], b""),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"], b""),
    (b"data: a\r\rdata: b\r\r", [b"data: a\r\r", b"data: b\r\r"], b""),
    (b"data: a\n\r\ndata: b\r\n\n", [b"data: a\n\r\n", b"data: b\r\n\n"], b""),
    (b"data: a\r\n\rdata: b\n\n", [b"data: a\r\n\r", b"data: b\n\n"], b""),
    (b"event: x\ndata: 1\ndata: 2\n\n: ping\n\n", [b"event: x\ndata: 1\ndata: 2\n\n", b": ping\n\n"], b""),
    (b"\n\ndata: a\n\n\ndata: b\n\n", [b"\n\n", b"data: a\n\n", b"\ndata: b\n\n"], b""),
    (b"data: a\n\ndata: half", [b"data: a\n\n"], b"data: half"),
    (b"data: a\n\r", [], b"data: a\n\r"),
    (b"", [], b""),
    (b"\n", [], b"\n"),
]


def split(pieces: list[bytes], event_bytes_max: int = 1024) -> tuple[list[bytes], bytes]:
    splitter = Splitter(event_bytes_max)
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.rest()


@pytest.mark.parametrize(("stream", "events", "rest"), CASES)
def test_whole_and_byte_by_byte(stream: bytes, events: list[bytes], rest: bytes) -> None:
    assert split([stream]) == (events, rest)
    assert split([stream[i : i + 1] for i in range(len(stream))]) == (events, rest)


@pytest.mark.parametrize(("stream", "events", "rest"), CASES)
def test_every_cut_in_two(stream: bytes, events: list[bytes], rest: bytes) -> None:
    for cut in range(len(stream) + 1):
        assert split([stream[:cut], stream[cut:]]) == (events, rest)


lines = st.lists(
    st.sampled_from([b"data: x", b"data:", b"event: e", b":c", b"a", b"", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]),
    max_size=30,
).map(b"".join)


@given(stream=lines | st.binary(max_size=200), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_any_split_gives_the_same_events_and_loses_no_byte(stream: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(borders)]
    whole, rest = split([stream])
    assert split(pieces) == (whole, rest)
    assert b"".join(whole) + rest == stream


def test_one_event_is_handed_on_without_a_copy() -> None:
    data = b'data: {"x": 1}\n\n'
    assert Splitter().feed(data)[0] is data


@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\r\n", b""])
@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_an_event_that_is_too_long_raises_before_more_is_held(ending: bytes, piece_bytes: int) -> None:
    stream = b"data: ok\n\n" + b"data: " + b"x" * 500 + ending
    pieces = [stream[begin : begin + piece_bytes] for begin in range(0, len(stream), piece_bytes)]
    with pytest.raises(EventTooLarge, match="256"):
        split(pieces, event_bytes_max=256)


def test_an_event_of_just_the_limit_passes() -> None:
    event = b"data: " + b"x" * 8 + b"\n\n"
    assert split([event[:5], event[5:]], event_bytes_max=16) == ([event], b"")
    with pytest.raises(EventTooLarge):
        split([event], event_bytes_max=15)


@pytest.mark.parametrize(
    ("raw", "name", "data"),
    [
        (b"data: abc\n\n", b"", b"abc"),
        (b"data:abc\n\n", b"", b"abc"),
        (b"data:  abc\n\n", b"", b" abc"),
        (b"data: a\ndata: b\n\n", b"", b"a\nb"),
        (b"event: ping\ndata: {}\n\n", b"ping", b"{}"),
        (b"event: ping\r\ndata: {}\r\n\r\n", b"ping", b"{}"),
        (b"event:ping\rdata: {}\r\r", b"ping", b"{}"),
        (b"data\n\n", b"", b""),
        (b": comment\n\n", b"", b""),
        (b"database: x\n\n", b"", b""),
        (b"\xef\xbb\xbfdata: a\n\n", b"", b"a"),
        (b"\ndata: a\n\n", b"", b"a"),
        (b"event: a\nevent: b\n\n", b"b", b""),
        (b"", b"", b""),
    ],
)
def test_name_and_data(raw: bytes, name: bytes, data: bytes) -> None:
    assert (name_of(raw), data_of(raw)) == (name, data)


@given(st.binary(max_size=200))
def test_any_bytes_have_a_name_and_data(raw: bytes) -> None:
    assert isinstance(name_of(raw), bytes)
    assert isinstance(data_of(raw), bytes)


@given(st.lists(st.sampled_from([b"data: ", b"x", b"\n", b"\r", b"\r\n", b" ", b":"]), max_size=9).map(b"".join))
def test_the_fast_reading_of_data_says_what_the_lines_say(tail: bytes) -> None:
    raw = b"data: " + tail
    lines = raw.splitlines()
    values = [line[5:].removeprefix(b" ") for line in lines if line[:5] == b"data:"]
    assert data_of(raw) == b"\n".join(values)


def test_one_crlf_event_is_handed_on_without_a_copy() -> None:
    data = b'event: x\r\ndata: {"x": 1}\r\n\r\n'
    assert Splitter().feed(data)[0] is data


def test_a_long_event_in_many_pieces_is_searched_once() -> None:
    splitter = Splitter(event_bytes_max=1 << 20)
    for _ in range(100_000):
        assert splitter.feed(b"x") == []
    assert splitter.feed(b"\n\n") == [b"x" * 100_000 + b"\n\n"]
