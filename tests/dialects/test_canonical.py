"""One spelling for equal JSON: what is equal meets, and what is not stays apart."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.dialects.canonical import DEPTH_MAX, canonical
from meshd.refusal import Reason, Refused

# ECMA-262 and appendix B of RFC 8785, but for what is beyond 2**53.
NUMBERS = {
    "0": "0", "-0": "0", "-0.0": "0", "0e99": "0", "1.0": "1", "1e0": "1", "10e-1": "1", "1.5": "1.5", "-1.50": "-1.5",
    "1e21": "1e+21", "1E20": "1e+20", "123456789012345680000.0": "1.2345678901234568e+20",
    "0.000001": "0.000001", "1e-7": "1e-7", "0.00000015": "1.5e-7", "5e-324": "5e-324",
    "1.7976931348623157e308": "1.7976931348623157e+308", "333333333.33333329": "333333333.3333333",
    "0.1": "0.1", "120.0": "120", "1e23": "1e+23", "-1e-7": "-1e-7", "0.002": "0.002", "4.50": "4.5", "2e-3": "0.002",
    "0.000000000000000000000000001": "1e-27", "-5e-324": "-5e-324", "9007199254740993": "9007199254740993",
    "-12": "-12", "100": "100",
}  # fmt: skip


def spelled(text: str | bytes) -> str:
    return canonical(text.encode() if isinstance(text, str) else text, "it").decode()


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items())
def test_numbers(text: str, expected: str) -> None:
    assert spelled(text) == expected
    assert spelled(f'{{"a":[{text}]}}') == f'{{"a":[{expected}]}}'


def test_every_double_is_read_back_as_itself() -> None:
    chance = random.Random(8785)
    for _ in range(20_000):
        (value,) = struct.unpack("d", chance.randbytes(8))
        if math.isfinite(value):
            assert float(spelled(repr(value))) == value


def test_members_are_sorted_by_their_utf_16_units() -> None:
    # RFC 8785, 3.2.3.
    text = '{"\\u20ac":1,"\\r":2,"\\ufb33":3,"1":4,"\\ud83d\\ude00":5,"\\u0080":6,"\\u00f6":7}'
    names = list(json.loads(spelled(text)))
    assert names == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_strings_have_the_least_escapes() -> None:
    text = r'"\u20ac$\u000F\u000aA\u0027B\u0022\u005c\\\"\/\u0000\b\f\t\u007f"'
    assert spelled(text) == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/\\u0000\\b\\f\\t\x7f"'


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_however_it_is_written_it_is_spelled_once(value: Any) -> None:
    try:
        compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    wide = json.dumps(value, indent=2, ensure_ascii=True).encode()
    backwards = json.dumps(_reversed(value), separators=(",", ":")).encode()
    assert canonical(compact, "it") == canonical(wide, "it") == canonical(backwards, "it")
    assert canonical(canonical(compact, "it"), "it") == canonical(compact, "it")
    assert json.loads(canonical(compact, "it")) == value


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(inner) for key, inner in reversed(value.items())}
    return [_reversed(inner) for inner in value] if isinstance(value, list) else value


DIFFERENT = [
    ("40010301869654940", "4.001030186965494e+16"),
    ("9007199254740993", "9007199254740992"), ("1", '"1"'), ("null", '"null"'), ("[]", "{}"), ('{"a":1}', '{"a":[1]}'),
    ('"a"', '"A"'), ('"\\u00e9"', '"e\\u0301"'), ("true", "1"), ("[1,2]", "[2,1]"), ('{"a":null}', "{}"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_stays_apart(one: str, other: str) -> None:
    assert spelled(one) != spelled(other)


BAD = {
    b'{"a":1,"a":2}': "has the key 'a' more than once",
    b'{"b":[{"a":{"c":1,"c":1}}]}': "has the key 'c' more than once",
    b'{"a":1,"\\u0061":1}': "has the key 'a' more than once",
    b'{ "a": 1, "a": 1.5 }': "has the key 'a' more than once",
    b"{" * 3 + b'"a"': "is not JSON",
    b"NaN": "NaN is no number",
    b"[-Infinity]": "-Infinity is no number",
    b"1e400": "beyond what a double can hold",
    b'{"a":[-1.5e999]}': "beyond what a double can hold",
    b"9" * 400: "a number of 400 digits",
    b"9" * 100_000: "digits",
    b'"\xff"': "is not UTF-8",
    b'"\xed\xa0\x80"': "is not UTF-8",
    b'"\\ud800"': "half of a surrogate pair",
    b'{"\\udfff":1}': "half of a surrogate pair",
    b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1): "nested",
    b'{"a":' * (DEPTH_MAX + 1) + b"1.5" + b"}" * (DEPTH_MAX + 1): "nested",
    b"[" * 200_000: "nested|not JSON",
    b'{"a":1}x': "is not JSON",
    b"": "is not JSON",
    b'\xef\xbb\xbf{"a":1}': "is not JSON",
    b'{"a":"\n"}': "is not JSON",
    b"01": "is not JSON",
    b"{'a':1}": "is not JSON",
}


@pytest.mark.parametrize(("raw", "words"), BAD.items(), ids=[str(n) for n in range(len(BAD))])
def test_bad_input(raw: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        canonical(raw, "it")
    assert caught.value.reason is Reason.MALFORMED
    assert len(caught.value.message) < 400


def test_as_deep_as_it_may_be() -> None:
    for raw in (b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, b'{"a":' * DEPTH_MAX + b"1.5" + b"}" * DEPTH_MAX):
        assert canonical(raw, "it") == raw
