"""Whatever the bytes, a request is read or refused; duplicates are seen at every level that decides."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.dialects import json_pairs as pairs_of
from meshd.refusal import Reason, Refused

BAD = [
    (b"", "ends early"),
    (b"not json", "not JSON"),
    (b"[]", "expected `object`"),
    (b"null", "expected `object`"),
    (b'{"a":1', "ends early"),
    (b'{"a":1} {}', "trailing"),
    (b'{"a":1}\x00', "trailing"),
    (b'{"a":NaN}', "not JSON"),
    (b'{"a":Infinity}', "not JSON"),
    (b'{"a":01}', "not JSON"),
    (b"{'a':1}", "not JSON"),
    (b'{"a":1,}', "trailing comma"),
    (b'\xef\xbb\xbf{"a":1}', "byte order mark"),
    (b'{"a":"\xff"}', "not UTF-8"),
    (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
    (b'{"\xff":1}', "not UTF-8"),
    (b'{"a":"\\ud800"}', "surrogate"),
    (b'{"a":"\\udc00"}', "surrogate"),
    (b'{"a":"tab\tinside"}', "not JSON"),
    (b'{"a":' * 100_000, "too deeply"),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
    (b'{"model":"a","model":"b"}', "'model' more than once"),
    (b'{"model":"a","mod\\u0065l":"b"}', "'model' more than once"),
    (b'{"":1,"":1}', "more than once"),
]


@pytest.mark.parametrize(("body", "says"), BAD, ids=[repr(body[:24]) for body, _ in BAD])
def test_what_is_refused_and_what_the_message_says(body: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says) as caught:
        pairs_of.read_body(body)
    assert caught.value.reason is Reason.MALFORMED
    assert caught.value.status == 400


def test_keys_are_compared_after_their_escapes_and_values_stay_raw() -> None:
    pairs = pairs_of.read_body(b' {"mod\\u0065l" : "gp\\u0074" , "x":[1, 2 ] }\n')
    assert list(pairs) == ["model", "x"]
    assert bytes(pairs["model"]) == b'"gp\\u0074"'
    assert bytes(pairs["x"]) == b"[1, 2 ]"
    assert pairs_of.text(pairs, "model") == "gpt"


def raw(value: bytes) -> pairs_of.Pairs:
    return pairs_of.read_object(b'{"v":' + value + b"}", "test")


@pytest.mark.parametrize(
    "value", [b"10.0", b"true", b'"2"', b"-1", b"0", b"1e3", b"1000000001", b"9" * 400, b"[]", b"{}"]
)
def test_no_integer(value: bytes) -> None:
    with pytest.raises(Refused, match="'v' must be an integer from 1 to 1000000000"):
        pairs_of.integer(raw(value), "v", least=1)


@pytest.mark.parametrize("value", [b'"yes"', b"1", b"0", b'"true"', b"[]"])
def test_no_flag(value: bytes) -> None:
    with pytest.raises(Refused, match="'v' must be true or false"):
        pairs_of.flag(raw(value), "v")


@pytest.mark.parametrize("value", [b"1", b"true", b"[]", b'{"a":"b"}'])
def test_no_text(value: bytes) -> None:
    with pytest.raises(Refused, match="'v' of the request body must be a string"):
        pairs_of.text(raw(value), "v")


def test_null_is_absent() -> None:
    pairs = raw(b"null")
    assert pairs_of.text(pairs, "v") is None
    assert pairs_of.integer(pairs, "v", least=1) is None
    assert pairs_of.flag(pairs, "v") is None
    assert pairs_of.member(pairs, "v") is None


def test_a_message_shows_only_the_beginning_of_a_value() -> None:
    with pytest.raises(Refused) as caught:
        pairs_of.text(raw(b"[" + b"1," * 5_000 + b"1]"), "v")
    assert len(caught.value.message) < 200


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=6)


def spell(value: Any, draw: Any) -> str:
    """Write JSON in one of its many spellings: blanks, escapes."""
    blank: str = draw(st.sampled_from(["", " ", "\n", "\t ", "\r\n"]))
    if isinstance(value, dict):
        members = (f"{spell(key, draw)}{blank}:{blank}{spell(inner, draw)}" for key, inner in value.items())
        return "{" + blank + f"{blank},{blank}".join(members) + blank + "}"
    if isinstance(value, list):
        return "[" + blank + f"{blank},{blank}".join(spell(inner, draw) for inner in value) + blank + "]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def has_lone_surrogate(text: str) -> bool:
    return any(0xD800 <= ord(character) <= 0xDFFF for character in text)


@st.composite
def spelled(draw: Any, source: Any) -> tuple[Any, bytes]:
    value = draw(source)
    return value, spell(value, draw).encode()


@given(spelled(objects), st.dictionaries(st.text(max_size=6), values, max_size=3))
def test_what_is_written_again_is_what_was_read_and_the_edits(given_: tuple[Any, bytes], edits: dict[str, Any]) -> None:
    value, body = given_
    pairs = pairs_of.read_body(body)
    written = pairs_of.write(pairs, {name: json.dumps(edit).encode() for name, edit in edits.items()})
    assert json.loads(written) == value | edits
    assert [*json.loads(written)][: len(value)] == list(value)


@given(spelled(st.lists(objects, max_size=5)))
def test_arrays_of_objects_are_read_in_any_spelling(given_: tuple[Any, bytes]) -> None:
    value, body = given_
    read = pairs_of.read_objects(msgspec.Raw(body), "test")
    assert [{name: json.loads(bytes(raw)) for name, raw in each.items()} for each in read] == value


@given(st.lists(objects.filter(bool), min_size=1, max_size=5), st.data())
def test_no_duplicate_slips_through_an_array_in_any_spelling(items: list[dict[str, Any]], data: Any) -> None:
    at = data.draw(st.integers(0, len(items) - 1))
    key = data.draw(st.sampled_from(sorted(items[at])))
    is_compact = data.draw(st.booleans())
    pieces = []
    for index, item in enumerate(items):
        members = list(item.items())
        if index == at:
            members.insert(data.draw(st.integers(0, len(members))), (key, data.draw(values)))
        if is_compact:
            each = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in members)
        else:
            each = ",".join(f"{spell(name, data.draw)}:{spell(value, data.draw)}" for name, value in members)
        pieces.append("{" + each + "}")
    body = ("[" + ",".join(pieces) + "]").encode()
    with pytest.raises(Refused, match="more than once"):
        pairs_of.read_objects(msgspec.Raw(body), "test")


@given(spelled(st.lists(objects, max_size=30)))
def test_flat_is_never_said_of_what_is_nested(given_: tuple[Any, bytes]) -> None:
    value, body = given_
    is_nested = any(isinstance(inner, (list, dict)) for item in value for inner in item.values())
    if pairs_of.is_flat(msgspec.Raw(body)):
        assert not is_nested


def test_flat_is_said_of_ordinary_messages() -> None:
    messages = [{"role": "user", "content": "What is 1 + 1?"}] * 20
    assert pairs_of.is_flat(msgspec.Raw(json.dumps(messages).encode()))
    assert pairs_of.is_flat(msgspec.Raw(json.dumps(messages, separators=(",", ":"), indent=1).encode()))
    assert not pairs_of.is_flat(msgspec.Raw(b'{"role":"user"}'))


@given(st.binary(max_size=300) | st.text(alphabet='{}[]",:\\u0dA8 1eE.-tfn\n', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (pairs_of.read_body, lambda raw: pairs_of.read_objects(msgspec.Raw(raw), "test")):
        reason = Reason.MALFORMED
        try:
            read(body)
        except Refused as refused:
            reason = refused.reason
        assert reason is Reason.MALFORMED
