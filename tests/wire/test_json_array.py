"""Elements of a growing array are the same however the bytes arrive, and all bytes together are the body that came."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.wire.json_array import Splitter
from meshd.wire.sse import EventTooLarge

CASES = [
    (b'[{"a":1}\n,\r\n{"b":[2,{}]}\n]\n', [b'[{"a":1}', b'\n,\r\n{"b":[2,{}]}', b"\n]"], b"\n"),
    (b' [ {"a":"]}\\"["} ]', [b' [ {"a":"]}\\"["}', b" ]"], b""),
    (b'{"error":{"code":400}}\n', [b'{"error":{"code":400}}'], b"\n"),
    (b"[[1],[2]]", [b"[[1]", b",[2]", b"]"], b""),
    (b'["\\\\", "x"]', [b'["\\\\", "x"]'], b""),
    (b"[]", [b"[]"], b""),
    (b'[{"a":"half', [], b'[{"a":"half'),
    (b"]}]no json[", [], b"]}]no json["),
    (b"", [], b""),
]


def split(pieces: list[bytes], event_bytes_max: int = 1024) -> tuple[list[bytes], bytes]:
    splitter = Splitter(event_bytes_max)
    found = [element for piece in pieces for element in splitter.feed(piece)]
    return found, splitter.rest()


@pytest.mark.parametrize(("body", "elements", "rest"), CASES)
def test_every_cut_gives_the_same_elements(body: bytes, elements: list[bytes], rest: bytes) -> None:
    assert split([body[i : i + 1] for i in range(len(body))]) == (elements, rest)
    for cut in range(len(body) + 1):
        assert split([body[:cut], body[cut:]]) == (elements, rest)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"', "\\", "]}", '\\"', "[{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(
    elements=st.lists(st.dictionaries(st.text(max_size=5), values, max_size=4), max_size=5),
    indent=st.none() | st.integers(0, 2),
    is_ascii=st.booleans(),
    cuts=st.lists(st.integers(0, 500), max_size=12),
)
def test_each_element_of_any_array_is_found(
    elements: list[Any], indent: int | None, is_ascii: bool, cuts: list[int]
) -> None:
    body = json.dumps(elements, indent=indent, ensure_ascii=is_ascii).encode()
    borders = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces, rest = split([body[a:b] for a, b in itertools.pairwise(borders)], 1 << 20)
    assert b"".join(pieces) + rest == body
    assert [json.loads(piece.lstrip(b"[, \n")) for piece in pieces[:-1]] == elements


@given(
    body=st.binary(max_size=60) | st.text(alphabet='[]{}",\\ x', max_size=60).map(str.encode), cut=st.integers(0, 60)
)
def test_nonsense_loses_no_byte(body: bytes, cut: int) -> None:
    pieces, rest = split([body[:cut], body[cut:]])
    assert (pieces, rest) == split([body])
    assert b"".join(pieces) + rest == body


@pytest.mark.parametrize("ending", [b'"}]', b""])
@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_an_element_that_is_too_long_raises_before_more_is_held(ending: bytes, piece_bytes: int) -> None:
    body = b'[{},{"a":"' + b"x" * 500 + ending
    with pytest.raises(EventTooLarge, match="256"):
        split([body[begin : begin + piece_bytes] for begin in range(0, len(body), piece_bytes)], 256)
