"""Any bytes are requests or a refusal, whichever way they were cut, and what was seen before changes nothing."""

# ruff: noqa: E501 - bytes are easier to compare on one line

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.wire import http1_request
from tests.wire.corpus import REPLIES, REQUESTS
from tests.wire.reading import Replies, Requests, forget

if TYPE_CHECKING:
    from collections.abc import Iterator

FUZZ = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = st.sampled_from(
    [
        b"GET ", b"POST ", b"CONNECT ", b"PRI ", b"/a", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ",
        b"\t", b":", b";", b",", b"0", b"4", b"ffffffff", b"Host: a\r\n", b"Content-Length: 4\r\n", b"content-length:",
        b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n",
        b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"body", b"\x00", b"\xff", b"X: y\r\n",
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 100 C\r\n\r\n", b"http://a.mesh", b"*", b"#", b"?",
    ]
)  # fmt: skip
NONSENSE = st.one_of(st.binary(max_size=200), st.lists(TOKENS, max_size=25).map(b"".join))


@st.composite
def changed(draw: st.DrawFn, corpus: tuple[bytes, ...]) -> bytes:
    """Draw one of the corpus with some bytes changed, dropped, doubled or put in."""
    raw = bytearray(b"".join(draw(st.lists(st.sampled_from(corpus), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            raw[at : at + 1] = draw(st.binary(max_size=2))
        elif kind == 1:
            raw[at:at] = draw(TOKENS)
        elif kind == 2:
            del raw[at : at + draw(st.integers(1, 8))]
        else:
            raw[at:at] = raw[max(0, at - draw(st.integers(1, 30))) : at]
    return bytes(raw)


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    forget()
    yield
    forget()


def whole(raw: bytes) -> list[Any]:
    """Read `raw` in one piece, knowing nothing."""
    forget()
    return Requests().feed([raw])


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[begin:end] for begin, end in itertools.pairwise(at)]


@pytest.mark.parametrize("raw", REQUESTS)
def test_the_corpus_reads_the_same_cut_anywhere(raw: bytes) -> None:
    expected = whole(raw)
    for place in range(len(raw) + 1):
        forget()
        assert Requests().feed([piece for piece in (raw[:place], raw[place:]) if piece]) == expected, place
    forget()
    assert Requests().feed(raw[n : n + 1] for n in range(len(raw))) == expected


@pytest.mark.parametrize("raw", REQUESTS)
def test_the_corpus_reads_the_same_a_second_time(raw: bytes) -> None:
    expected = whole(raw)
    for _ in range(3):
        assert Requests().feed([raw]) == expected


def test_the_same_head_again_reads_the_same_cut_anywhere() -> None:
    """Also just before the digits of its length, where there is none yet."""
    raw = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nX: y\r\n\r\nbody"
    expected = Requests().feed([raw])
    for place in range(len(raw) + 1):
        pieces = [piece for piece in (raw[:place], raw[place:]) if piece]
        assert Requests().feed([raw, raw, *pieces]) == expected * 3, place


def test_a_length_at_the_second_byte_of_the_fields() -> None:
    """`start > end` in a slice of bytes is an error once it is compiled."""
    raw = b"GET / HTTP/1.1\r\nxcontent-length: 4\r\n\r\n"
    assert whole(raw) == Requests().feed([raw])


@pytest.mark.parametrize("raw", REPLIES)
@pytest.mark.parametrize("is_upgrade", [False, True])
def test_replies_read_the_same_cut_anywhere(raw: bytes, is_upgrade: bool) -> None:
    expected = Replies(is_upgrade=is_upgrade).feed([raw])
    for place in range(len(raw) + 1):
        assert Replies(is_upgrade=is_upgrade).feed([raw[:place], raw[place:]]) == expected, place


@FUZZ
@given(st.one_of(NONSENSE, changed(REQUESTS)), st.lists(st.integers(0, 1000), max_size=6))
def test_any_bytes_are_requests_or_a_refusal(raw: bytes, places: list[int]) -> None:
    expected = whole(raw)
    forget()
    assert Requests().feed(cut(raw, places)) == expected


@FUZZ
@given(changed(REQUESTS), st.lists(changed(REQUESTS), max_size=4), st.lists(st.integers(0, 1000), max_size=4))
def test_what_was_read_before_changes_nothing(raw: bytes, before: list[bytes], places: list[int]) -> None:
    expected = whole(raw)
    forget()
    for other in (*REQUESTS, *before):
        Requests().feed([other])
        Requests().feed(cut(other, places))
    assert Requests().feed([raw]) == expected
    assert Requests().feed(cut(raw, places)) == expected
    assert len(http1_request._known) <= http1_request.KNOWN_MAX


@FUZZ
@given(st.one_of(NONSENSE, changed(REPLIES)), st.lists(st.integers(0, 1000), max_size=6), st.booleans(), st.booleans())
def test_any_bytes_are_a_reply_or_a_refusal(raw: bytes, places: list[int], is_head: bool, is_upgrade: bool) -> None:
    expected = Replies(is_head_request=is_head, is_upgrade=is_upgrade).feed([raw])
    said = Replies(is_head_request=is_head, is_upgrade=is_upgrade).feed(cut(raw, places))
    if is_head and ("end", ()) in expected:
        # Where a body follows all the same, its framing may be read over: then the connection is not used again.
        expected, said = ([one for one in each if one != "refused"] for each in (expected, said))
    assert said == expected


def test_a_head_is_not_remembered_under_the_bytes_of_another() -> None:
    other = b"PUT /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nAuthorization: one\r\nContent-Length: 1\r\n\r\nx"
    mine = b"GET /b HTTP/1.1\r\nHost: a\r\nAuthorization: two\r\n\r\n"
    expected = whole(other)
    forget()
    reader = Requests()
    reader.feed([other, mine[:30], mine[30:]])
    assert Requests().feed([other]) == expected


def test_an_empty_line_makes_no_start_line_a_field() -> None:
    Requests().feed([b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"])
    said = Requests().feed([b"GET /b HTTP/1.1\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"])
    assert said == [("refused", 400)]


@pytest.mark.parametrize("blanks", [b" ", b"\t", b" \t "])
def test_blanks_behind_a_host_are_no_part_of_it(blanks: bytes) -> None:
    """RFC 9110, section 5.5."""
    (said, _) = whole(b"GET / HTTP/1.1\r\nHost: a:1" + blanks + b"\r\n\r\n")
    assert "a:1" in said


def test_what_is_known_is_bounded() -> None:
    for number in range(3 * http1_request.KNOWN_MAX):
        Requests().feed([b"GET / HTTP/1.1\r\nHost: a\r\nX: %d\r\n\r\n" % number])
    assert len(http1_request._known) <= http1_request.KNOWN_MAX


def test_requests_with_one_head_keep_their_own_lengths() -> None:
    heads = [b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size for size in (1, 3, 0)]
    for _ in range(2):
        said = Requests().feed([heads[0] + b"x" + heads[1] + b"xyz" + heads[2]])
        assert [(one[7], one[-1]) for one in said if isinstance(one, list)] == [(1, b"x"), (3, b"xyz"), (0, b"")]
        requests: list[Any] = []
        reader = Requests()
        reader.request_head = requests.append  # type: ignore[method-assign]
        reader.request_data = lambda data: None  # type: ignore[method-assign]
        reader.feed([heads[0] + b"x", heads[1] + b"xyz"])
        stated = {value for request in requests for name, value in request.fields.headers if name == b"content-length"}
        assert stated <= {b"1", b"3"}
        assert all(
            int(value) == request.content_length
            for request in requests
            for name, value in request.fields.headers
            if name == b"content-length"
        )


def test_nonsense_behind_an_offer_of_h2c_is_a_refusal() -> None:
    offer = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody"
    assert Requests().feed([offer + b"GET /b HTTP/1.1\r\nost: a\r\n\r\n"])[-1] == ("refused", 400)
