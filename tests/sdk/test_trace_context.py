"""W3C headers: what the specification calls valid is read, all else is no trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd_sdk.trace_context import (
    format_baggage,
    format_tracestate,
    parse_baggage,
    parse_traceparent,
    parse_tracestate,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_valid_parent_is_read_and_written_back() -> None:
    parent = parse_traceparent(GOOD)
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.is_sampled, str(parent)) == (TRACE, SPAN, True, GOOD)
    unsampled = parse_traceparent(GOOD[:-1] + "0")
    assert unsampled is not None
    assert not unsampled.is_sampled


@pytest.mark.parametrize("value", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-09-what-the-future-holds"])
def test_a_future_version_is_read_as_far_as_it_is_known(value: str) -> None:
    assert str(parse_traceparent(value)) == GOOD


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"0-{TRACE}-{SPAN}-01",
        f" {GOOD}",
        f"{GOOD} ",
        f"{GOOD}\n",
        f"{GOOD},{GOOD}",
        GOOD.replace("-", "_"),
        GOOD.replace("0", "\u0660"),
    ],
)
def test_a_malformed_parent_is_none(value: str) -> None:
    assert parse_traceparent(value) is None


@given(st.text(max_size=80))
def test_a_parent_is_read_or_not_whatever_the_text(value: str) -> None:
    parse_traceparent(value)
    parse_tracestate(value)
    parse_baggage(value)


def test_trace_state() -> None:
    assert parse_tracestate("a=1, b@v=two words ,,c*/-_=x\t") == (("a", "1"), ("b@v", "two words"), ("c*/-_", "x"))
    assert parse_tracestate("") == ()
    assert len(parse_tracestate(",".join(f"k{n}=v" for n in range(32))) or ()) == 32
    assert format_tracestate((("a", "1"), ("b", "2"))) == "a=1,b=2"
    assert format_tracestate(tuple((f"k{n}", "v" * 100) for n in range(6))) == ""


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "=1",
        "a=",
        "A=1",
        "a=1,a=2",
        "a=x=y",
        "a b=1",
        "a=\u00e4",
        "a=1\x00",
        "a" * 257 + "=1",
        "a=" + "v" * 257,
        ",".join(f"k{n}=v" for n in range(33)),
    ],
)
def test_a_malformed_state_is_none(value: str) -> None:
    assert parse_tracestate(value) is None


def test_baggage() -> None:
    members = parse_baggage("user=a%20b , tenant = 7;secret;ttl = 5")
    assert members == ("user=a%20b", "tenant = 7;secret;ttl = 5")
    assert format_baggage(members) == "user=a%20b,tenant = 7;secret;ttl = 5"
    assert parse_baggage("a=") == ("a=",)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a",
        "a=1,",
        ",a=1",
        "=1",
        "a b=1",
        'a="1"',
        "a=\\",
        "a=\u00e4",
        "a=1;",
        "a=1;=2",
        "a=1\n",
        "a=" + "v" * 8191,
        ",".join(f"k{n}=v" for n in range(65)),
        "a=" + " " * 8000 + "\x01",
        "a=1;" + " ;" * 4000,
    ],
)
def test_malformed_baggage_is_none(value: str) -> None:
    assert parse_baggage(value) is None
