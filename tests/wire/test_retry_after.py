"""Retry-After as a number, a date, in milliseconds, and as anything else that somebody might send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.wire.fields import RETRY_AFTER_S_MAX, retry_after_s

WALL_S = 1_445_412_470.0  # ten seconds before the date of RFC 9110's example of another field


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b" 7 ", 7.0),
        (b"1.5", 1.5),
        (b"1000000000", RETRY_AFTER_S_MAX),
        (b"9" * 400, RETRY_AFTER_S_MAX),
        (b"Wed, 21 Oct 2015 07:28:00 GMT", 10.0),
        (b"Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        (b"Wednesday, 21-Oct-15 07:28:00 GMT", 10.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_S_MAX),
        (b"", None),
        (b"-5", None),
        (b"+5", None),
        (b"1e9", None),
        (b"inf", None),
        (b"nan", None),
        (b"soon", None),
        (b"1.2.3", None),
        (b"Wed, 99 Foo 2015 07:28:00 GMT", None),
        (b"\xff\xfe", None),
    ],
)
def test_what_it_says(value: bytes, seconds: float | None) -> None:
    assert retry_after_s([(b"retry-after", value)], WALL_S) == seconds


def test_milliseconds_are_more_exact_wherever_they_stand() -> None:
    both = [(b"retry-after", b"2"), (b"retry-after-ms", b"1250")]
    assert retry_after_s(both, WALL_S) == 1.25
    assert retry_after_s(both[::-1], WALL_S) == 1.25
    assert retry_after_s([(b"retry-after", b"2"), (b"retry-after-ms", b"-1")], WALL_S) == 2.0


def test_the_first_of_two_holds_and_none_is_none() -> None:
    assert retry_after_s([(b"retry-after", b"3"), (b"retry-after", b"9")], WALL_S) == 3.0
    assert retry_after_s([(b"retry-later", b"3")], WALL_S) is None


@given(st.binary(max_size=100), st.sampled_from([b"retry-after", b"retry-after-ms"]))
def test_nothing_breaks_it(value: bytes, name: bytes) -> None:
    found = retry_after_s([(name, value)], WALL_S)
    assert found is None or 0.0 <= found <= RETRY_AFTER_S_MAX
