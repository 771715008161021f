"""Header blocks of HTTP/2: what is known again says the same as what was read first."""

from __future__ import annotations

import pytest

from meshd.wire import http2
from meshd.wire.http2 import read_request
from meshd.wire.message import Request

HEAD = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"unary.mesh"))


def said(request: Request) -> tuple[object, ...]:
    return (
        request.method,
        request.target,
        request.fields.authority,
        request.has_body,
        request.content_length,
        request.expects_continue,
    )


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    http2._known.clear()


@pytest.mark.parametrize("more", [(), ((b"content-length", b"7"),), ((b"te", b"trailers"), (b"content-length", b"7"))])
def test_a_known_block_is_the_same_request(more: tuple[tuple[bytes, bytes], ...]) -> None:
    block = HEAD + more
    first = said(read_request(block, False))
    assert http2._known
    assert said(read_request(block, False)) == first == ("POST", "/a", "unary.mesh", True, 7 if more else None, False)


def test_blocks_that_differ_in_length_alone_are_apart() -> None:
    lengths = [read_request((*HEAD, (b"content-length", b"%d" % n)), False).content_length for n in (1, 2, 1, 2)]
    assert lengths == [1, 2, 1, 2]


def test_a_known_block_without_a_body_has_no_length() -> None:
    block = (*HEAD, (b"content-length", b"0"))
    assert read_request(block, False).content_length == 0
    again = read_request(block, True)
    assert (again.has_body, again.content_length) == (False, None)


def test_who_expects_to_be_told_to_go_on_is_read_anew() -> None:
    block = (*HEAD, (b"expect", b"100-continue"))
    assert [read_request(block, False).expects_continue for _ in range(2)] == [True, True]
    assert not http2._known
