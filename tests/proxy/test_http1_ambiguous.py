"""Bytes that two parsers could read in two ways: refused with the right status, never forwarded, connection closed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.harness import echo, get, plain_policy, post

START = b"POST /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /up/smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

REFUSED: dict[str, tuple[int, bytes]] = {
    "te-and-cl": (400, CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n"),
    "cl-and-te": (400, START + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "cl-twice-different": (400, START + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"),
    "cl-twice-same": (400, START + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"),
    "cl-list": (400, START + b"Content-Length: 4, 4\r\n\r\nabcd"),
    "cl-plus": (400, START + b"Content-Length: +4\r\n\r\nabcd"),
    "cl-minus": (400, START + b"Content-Length: -4\r\n\r\nabcd"),
    "cl-hex": (400, START + b"Content-Length: 0x4\r\n\r\nabcd"),
    "cl-spaces-within": (400, START + b"Content-Length: 4 4\r\n\r\nabcd"),
    "cl-empty": (400, START + b"Content-Length:\r\n\r\nabcd"),
    "cl-huge": (400, START + b"Content-Length: 99999999999999999999999999\r\n\r\nabcd"),
    "cl-underscore": (400, START + b"Content-Length: 1_0\r\n\r\nabcd"),
    "te-twice": (400, CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "te-identity": (501, START + b"Transfer-Encoding: identity\r\n\r\nabcd"),
    "te-gzip-chunked": (501, START + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "te-chunked-gzip": (400, START + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "te-xchunked": (501, START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "te-quoted": (501, START + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "te-vertical-tab": (400, START + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "te-empty": (400, START + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    "te-in-1.0": (400, b"POST /up/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "te-space-before-colon": (400, START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "cl-space-before-colon": (400, START + b"Content-Length : 4\r\n\r\nabcd"),
    "te-obs-fold": (400, START + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "obs-fold": (400, START + b"X-A: 1\r\n 2\r\n\r\n"),
    "obs-fold-first": (400, b"GET /up/x HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n"),
    "bare-lf-lines": (400, b"GET /up/x HTTP/1.1\nHost: 127.0.0.1\n\n"),
    "bare-lf-field": (400, START + b"X-A: 1\nX-B: 2\r\n\r\n"),
    "bare-lf-end": (400, START + b"\n"),
    "bare-cr-field": (400, START + b"X-A: 1\rX-B: 2\r\n\r\n"),
    "bare-cr-line": (400, b"GET /up/x HTTP/1.1\rHost: 127.0.0.1\r\n\r\n"),
    "nul-in-value": (400, START + b"X-A: a\x00b\r\n\r\n"),
    "nul-in-name": (400, START + b"X\x00A: b\r\n\r\n"),
    "nul-in-path": (400, b"GET /up/\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "control-in-value": (400, START + b"X-A: a\x01b\r\n\r\n"),
    "delete-in-value": (400, START + b"X-A: a\x7fb\r\n\r\n"),
    "space-in-name": (400, START + b"X A: b\r\n\r\n"),
    "no-colon": (400, START + b"XA\r\n\r\n"),
    "empty-name": (400, START + b": b\r\n\r\n"),
    "name-with-parenthesis": (400, START + b"X(A): b\r\n\r\n"),
    "name-beyond-ascii": (400, START + b"X-\xc3\xa4: b\r\n\r\n"),
    "space-in-path": (400, b"GET /up/a b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "tab-in-start": (501, b"GET\t/up/a\tHTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "beyond-ascii-in-path": (400, b"GET /up/\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "lower-case-method": (501, b"get /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "unknown-method": (501, b"BREW /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "webdav-method": (501, b"PROPFIND /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "rtsp-method": (501, b"DESCRIBE /up/x RTSP/1.0\r\nHost: 127.0.0.1\r\n\r\n"),
    "http-0.9": (400, b"GET /up/x\r\n"),
    "http-1.2": (505, b"GET /up/x HTTP/1.2\r\nHost: 127.0.0.1\r\n\r\n"),
    "http-2.0": (505, b"GET /up/x HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n"),
    "http-9.9": (505, b"GET /up/x HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n"),
    "http-lower": (400, b"GET /up/x http/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "http-no-minor": (400, b"GET /up/x HTTP/1\r\nHost: 127.0.0.1\r\n\r\n"),
    "icecast": (501, b"SOURCE /up/x ICE/1.0\r\nHost: 127.0.0.1\r\n\r\n"),
    "h2-preface-of-another-kind": (400, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
    "no-host": (400, b"GET /up/x HTTP/1.1\r\n\r\n"),
    "two-hosts": (400, b"GET /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "host-with-user": (400, b"GET /up/x HTTP/1.1\r\nHost: a@127.0.0.1\r\n\r\n"),
    "host-with-path": (400, b"GET /up/x HTTP/1.1\r\nHost: 127.0.0.1/x\r\n\r\n"),
    "host-list": (400, b"GET /up/x HTTP/1.1\r\nHost: 127.0.0.1, evil\r\n\r\n"),
    "expect-else": (417, START + b"Expect: 200-ok\r\nContent-Length: 4\r\n\r\n"),
    "connect-with-body": (400, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 4\r\n\r\nabcd"),
    "not-http": (501, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello"),
    "empty-line-then-junk": (501, b"\r\n\x00\x00\r\n\r\n"),
}  # fmt: skip

CHUNK_ERRORS: dict[str, bytes] = {
    "not-hex": b"xyz\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "prefix-0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "empty": b"\r\nabc\r\n0\r\n\r\n",
    "space-before": b" 3\r\nabc\r\n0\r\n\r\n",
    "space-after": b"3 \r\nabc\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffff1\r\nabc\r\n0\r\n\r\n",
    "bare-lf-after-size": b"3\nabc\r\n0\r\n\r\n",
    "bare-lf-after-data": b"3\r\nabc\n0\r\n\r\n",
    "bare-cr-after-size": b"3\rabc\r\n0\r\n\r\n",
    "longer-than-said": b"3\r\nabcd\r\n0\r\n\r\n",
    "shorter-than-said": b"5\r\nabc\r\n0\r\n\r\n",
    "bare-lf-in-extension": b"3;a\n=b\r\nabc\r\n0\r\n\r\n",
    "nul-in-extension": b"3;a=\x00\r\nabc\r\n0\r\n\r\n",
    "bare-lf-at-end": b"3\r\nabc\r\n0\r\n\n",
    "bad-trailer": b"3\r\nabc\r\n0\r\nX A: b\r\n\r\n",
    "obs-fold-trailer": b"3\r\nabc\r\n0\r\nX: a\r\n b\r\n\r\n",
    "nul-trailer": b"3\r\nabc\r\n0\r\nX: a\x00\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_ambiguous_head_is_refused_and_nothing_passes(mesh: Any, upstream: Any, name: str) -> None:
    status, raw = REFUSED[name]
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(raw + SMUGGLED)
    reply = await client.reply()
    assert reply.status == status, reply.body
    assert reply.get(b"connection") == b"close"
    assert await client.rest() == b""
    assert up.received == b""


@pytest.mark.parametrize("name", CHUNK_ERRORS)
async def test_broken_chunks_end_the_call_and_the_connection(mesh: Any, upstream: Any, name: str) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(CHUNKED + b"\r\n" + CHUNK_ERRORS[name] + SMUGGLED)
    reply = await client.reply()
    assert reply.status == 400, reply.body
    assert await client.rest() == b""
    await one.idle()
    # What had been read of it may have gone out, but never as a whole request, and never what stood behind it.
    assert b"0\r\n\r\n" not in up.received
    assert b"smuggled" not in up.received


@pytest.mark.parametrize(
    "extension", [b";a", b";a=b", b';a="b;c"', b";" + b"a" * 200], ids=["name", "value", "quoted", "long"]
)  # fmt: skip
async def test_chunk_extensions_are_read_over(mesh: Any, upstream: Any, extension: bytes) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    reply = await one.fetch(CHUNKED + b"\r\n3" + extension + b"\r\nabc\r\n0" + extension + b"\r\n\r\n")
    assert reply.body == b"POST /x\nabc"
    assert extension not in up.received


@pytest.mark.parametrize("first", [b"", get("/up/one"), post("/up/one", b"body")], ids=["alone", "get", "post"])
async def test_what_stands_before_the_nonsense_is_answered(mesh: Any, upstream: Any, first: bytes) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(first + get("/up/two") + b"G\x00RBAGE\r\n\r\n" + SMUGGLED)
    if first:
        assert (await client.reply()).body.split(b"\n")[0].endswith(b" /one")
    assert (await client.reply()).body == b"GET /two\n"
    assert (await client.reply()).status in (400, 501)
    assert await client.rest() == b""
    assert b"smuggled" not in up.received


async def test_a_fragment_is_refused(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    assert (await one.fetch(get("/up/a#b"))).status == 400
    assert up.received == b""


async def test_more_spaces_before_the_version_do_not_pass_on(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    assert (await one.fetch(b"GET /up/a   HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")).body == b"GET /a\n"
    assert up.received.startswith(b"GET /a HTTP/1.1\r\n")


async def test_an_empty_line_before_a_request_is_passed_over(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    assert (await one.fetch(b"\r\n" + get("/up/x"))).body == b"GET /x\n"


@pytest.mark.parametrize("path", ["/up/../admin", "/up/a/%2e%2e/b", "/up/./a", "/up/a/..", "/up/%2E/a"])
async def test_dot_segments_cannot_leave_the_base_path(mesh: Any, upstream: Any, path: str) -> None:
    up = await upstream(echo)
    one = await mesh(f'upstreams: {{up: {{url: "http://127.0.0.1:{up.port}/base", kind: tool}}}}\n')
    assert (await one.fetch(get(path))).status == 400
    assert up.received == b""
