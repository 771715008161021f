"""Header blocks of HTTP/2: what is known again says the same as what was read first."""

from __future__ import annotations

import pytest

from meshd.wire import http2
from meshd.wire.http2 import ReplyReader, RequestHeads, RequestReader, read_request
from meshd.wire.message import Request, WireError

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


def test_a_connection_tells_a_block_from_the_one_before_by_every_byte() -> None:
    reader = RequestReader()
    for _ in range(2):
        for path in (b"/a", b"/b", b"/b", b"/a"):
            block = ((b":method", b"POST"), (b":path", path), (b"x-n", path))
            request = reader.read(block, False)
            assert request.target == path.decode()
            assert request.fields.forward == [(b"x-n", path)]
    assert reader.read((*HEAD, (b"content-length", b"3")), False).content_length == 3
    assert reader.read(HEAD, True).has_body is False
    assert reader.read(HEAD, False).has_body is True


def test_a_connection_reads_nonsense_anew_each_time() -> None:
    reader = RequestReader()
    reader.read(HEAD, False)
    for _ in range(2):
        with pytest.raises(WireError):
            reader.read((*HEAD, (b"host", b"another")), False)
    assert reader.read(HEAD, False).target == "/a"


def test_replies_are_read_by_their_fields() -> None:
    reader = ReplyReader()
    ok = ((b":status", b"200"), (b"content-type", b"a/b"))
    for _ in range(2):
        assert reader.read(ok) == (200, [(b"content-type", b"a/b")], None)
        assert reader.read(((b":status", b"404"), (b"content-length", b"7"))) == (404, [(b"content-length", b"7")], 7)
        assert reader.read(((b":status", b"404"),)) == (404, [], None)
    assert ReplyReader().read(()) == (0, [], None)


def test_pseudo_header_fields_are_those_of_the_request_however_many_paths_there_are() -> None:
    heads = RequestHeads("https", b"up:1")
    for _ in range(2):
        for number in range(3 * http2.PATHS_MAX):
            for method in ("GET", "POST"):
                made = heads.of(method, f"/{number}")
                assert made == [
                    (b":method", method.encode()),
                    (b":scheme", b"https"),
                    (b":authority", b"up:1"),
                    (b":path", b"/%d" % number),
                ]
    assert len(heads._made) <= http2.PATHS_MAX
    long = "/" + "x" * http2.PATH_CHARACTERS_MAX
    assert heads.of("GET", long)[3] == (b":path", long.encode())
    assert long not in heads._made
