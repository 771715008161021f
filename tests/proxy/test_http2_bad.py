"""HTTP/2 that breaks the rules or floods: refused, bounded, nothing forwarded, and other connections served on."""

# ruff: noqa: E501 - bytes are easier to compare on one line

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.proxy.harness import echo, plain_policy, turns, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, DATA, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 1, 0, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PSEUDO = [(":method", "GET"), (":scheme", "http"), (":authority", "127.0.0.1"), (":path", "/up/x")]
POST = [(":method", "POST"), *PSEUDO[1:]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(fields: list[tuple[str, str]]) -> bytes:
    """Encode fields as literals that are never indexed, whatever stands in them (RFC 7541, 6.2.3)."""
    return b"".join(b"\x10" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    raw, size = text.encode("latin-1"), len(text)
    if size < 127:
        return bytes([size]) + raw
    size -= 127
    length = b"\x7f"
    while size >= 128:
        length += bytes([size % 128 + 128])
        size //= 128
    return length + bytes([size]) + raw


def headers(stream: int, fields: list[tuple[str, str]], flags: int = END_STREAM | END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, block(fields))


START = PREFACE + frame(SETTINGS, 0, 0)

BAD_STREAMS: dict[str, bytes] = {
    "upper-case name": headers(1, [*PSEUDO, ("X-A", "b")]),
    "connection field": headers(1, [*PSEUDO, ("connection", "close")]),
    "transfer-encoding": headers(1, [*POST, ("transfer-encoding", "chunked")]),
    "keep-alive": headers(1, [*PSEUDO, ("keep-alive", "1")]),
    "upgrade": headers(1, [*PSEUDO, ("upgrade", "h2c")]),
    "te gzip": headers(1, [*PSEUDO, ("te", "gzip")]),
    "no method": headers(1, PSEUDO[1:]),
    "no path": headers(1, PSEUDO[:3]),
    "no scheme": headers(1, [PSEUDO[0], *PSEUDO[2:]]),
    "empty path": headers(1, [*PSEUDO[:3], (":path", "")]),
    "two methods": headers(1, [PSEUDO[0], *PSEUDO]),
    "two paths": headers(1, [*PSEUDO, (":path", "/up/y")]),
    "unknown pseudo": headers(1, [*PSEUDO, (":nonsense", "1")]),
    "status in request": headers(1, [*PSEUDO, (":status", "200")]),
    "pseudo after field": headers(1, [*PSEUDO[:3], ("x-a", "b"), PSEUDO[3]]),
    "nul in value": headers(1, [*PSEUDO, ("x-a", "a\x00b")]),
    "newline in value": headers(1, [*PSEUDO, ("x-a", "a\r\nx-b: c")]),
    "newline in name": headers(1, [*PSEUDO, ("x-a\r\n", "b")]),
    "space in name": headers(1, [*PSEUDO, ("x a", "b")]),
    "colon in name": headers(1, [*PSEUDO, ("x:a", "b")]),
    "newline in path": headers(1, [*PSEUDO[:3], (":path", "/up/x HTTP/1.1\r\nX: y")]),
    "space in path": headers(1, [*PSEUDO[:3], (":path", "/up/x y")]),
    "newline in method": headers(1, [(":method", "GET /up/y HTTP/1.1\r\n"), *PSEUDO[1:]]),
    "unknown method": headers(1, [(":method", "BREW"), *PSEUDO[1:]]),
    "newline in authority": headers(1, [*PSEUDO[:2], (":authority", "a\r\nX: y"), PSEUDO[3]]),
    "user in authority": headers(1, [*PSEUDO[:2], (":authority", "a@127.0.0.1"), PSEUDO[3]]),
    "host disagrees": headers(1, [*PSEUDO, ("host", "elsewhere")]),
    "two lengths": headers(1, [*POST, ("content-length", "1"), ("content-length", "2")], END_HEADERS)
    + frame(DATA, END_STREAM, 1, b"a"),
    "length that is no number": headers(1, [*POST, ("content-length", "x")], END_HEADERS)
    + frame(DATA, END_STREAM, 1, b"a"),
    "length without body": headers(1, [*POST, ("content-length", "5")]),
    "rebound host": headers(1, [*PSEUDO[:2], (":authority", "evil.example"), PSEUDO[3]]),
    "extended connect": headers(1, [(":method", "CONNECT"), (":protocol", "websocket"), *PSEUDO[1:]]),
}

BROKEN_BODIES: dict[str, bytes] = {
    "more than the length": headers(1, [*POST, ("content-length", "3")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"abcd"),
    "less than the length": headers(1, [*POST, ("content-length", "3")], END_HEADERS) + frame(DATA, END_STREAM, 1, b"ab"),
    "pseudo in trailers": headers(1, POST, END_HEADERS) + frame(DATA, 0, 1, b"a") + headers(1, [(":path", "/y")]),
    "trailers without an end": headers(1, POST, END_HEADERS) + headers(1, [("x-a", "b")], END_HEADERS),
}  # fmt: skip

FATAL: dict[str, bytes] = {
    "data on stream 0": frame(DATA, 0, 0, b"a"),
    "headers on stream 0": headers(0, PSEUDO),
    "data on an idle stream": frame(DATA, 0, 1, b"a"),
    "even stream": headers(2, PSEUDO),
    "settings of odd length": frame(SETTINGS, 0, 0, b"abc"),
    "settings ack with payload": frame(SETTINGS, ACK, 0, b"abcdef"),
    "settings on a stream": frame(SETTINGS, 0, 1),
    "window of zero": frame(WINDOW, 0, 0, struct.pack(">I", 0)),
    "window overflow": frame(WINDOW, 0, 0, struct.pack(">I", 0x7FFFFFFF)),
    "ping of odd length": frame(PING, 0, 0, b"abc"),
    "rst on an idle stream": frame(RST, 0, 1, b"\x00\x00\x00\x08"),
    "continuation alone": frame(CONTINUATION, END_HEADERS, 1, block(PSEUDO)),
    "another frame within a block": frame(HEADERS, END_STREAM, 1, block(PSEUDO)) + frame(PING, 0, 0, b"12345678"),
    "hpack nonsense": frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
    "a frame too large": frame(DATA, 0, 1, b"a" * 70_000),
    "push": frame(5, END_HEADERS, 1, b"\x00\x00\x00\x02" + block(PSEUDO)),
    "padding beyond the frame": frame(HEADERS, END_STREAM | END_HEADERS | 8, 1, b"\xff" + block(PSEUDO)),
    "no settings first": b"",
}


async def _still_serves(one: Any, h2_client: Any) -> None:
    assert (await (await h2_client(one)).ask("/up/alive")).body == b"GET /alive\n"


@pytest.mark.parametrize("name", BAD_STREAMS)
async def test_a_bad_head_is_never_forwarded(mesh: Any, upstream: Any, h2_client: Any, name: str) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(START + BAD_STREAMS[name] + frame(GOAWAY, 0, 0, bytes(8)))
    raw = await client.rest()
    assert up.received == b""
    assert raw.count(b"ok") == 0
    await _still_serves(one, h2_client)


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_breaks_its_word_is_never_whole(mesh: Any, upstream: Any, h2_client: Any, name: str) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(START + BROKEN_BODIES[name] + frame(GOAWAY, 0, 0, bytes(8)))
    await client.rest()
    await one.idle()
    assert b"0\r\n\r\n" not in up.received
    assert not any(record.outcome.status == 200 for record in one.attempts)
    await _still_serves(one, h2_client)


@pytest.mark.parametrize("name", FATAL)
async def test_a_broken_connection_is_closed(mesh: Any, upstream: Any, h2_client: Any, name: str) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(PREFACE + headers(1, PSEUDO) if name == "no settings first" else START + FATAL[name])
    raw = await client.rest()
    assert frame(GOAWAY, 0, 0)[3:9] in raw
    await one.idle()
    await _still_serves(one, h2_client)


async def _flood(one: Any, start: bytes, piece: bytes, bytes_max: int) -> int:
    """Send `piece` until the connection is closed; return how many bytes it took."""
    client = await one.connect()
    client.send(START + start)
    sent = 0
    while not client.reader.at_eof() and not client.writer.transport.is_closing() and sent < bytes_max:
        client.send(piece)
        sent += len(piece)
        await turns(2)
        client.reader._buffer.clear()
        client.reader._maybe_resume_transport()
    client.close()
    await until(lambda: not one.proxy.sessions)
    return sent


async def test_a_flood_of_continuations(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    start = frame(HEADERS, END_STREAM, 1, block(PSEUDO))
    assert await _flood(one, start, frame(CONTINUATION, 0, 1, block([("x-a", "b" * 1000)])), 1 << 20) < 200_000
    assert await _flood(one, start, frame(CONTINUATION, 0, 1) * 10, 1 << 20) < 10_000
    assert up.received == b""
    await _still_serves(one, h2_client)


async def test_rapid_resets(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + "limits: {resets_per_minute: 100}\n")
    client = await one.connect()
    client.send(START)
    stream = 1
    while not client.reader.at_eof() and not client.writer.transport.is_closing() and stream < 4000:
        client.send(headers(stream, PSEUDO) + frame(RST, 0, stream, b"\x00\x00\x00\x08"))
        stream += 2
        await turns(2)
        client.reader._buffer.clear()
    assert stream < 600
    await one.idle()
    await _still_serves(one, h2_client)


async def test_resets_that_the_server_is_made_to_send(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + "limits: {resets_per_minute: 100}\n")
    client = await one.connect()
    client.send(START)
    stream = 1
    while not client.reader.at_eof() and not client.writer.transport.is_closing() and stream < 60_000:
        # A window of zero on a stream makes the server reset it (CVE-2025-8671).
        client.send(headers(stream, POST, END_HEADERS) + frame(WINDOW, 0, stream, struct.pack(">I", 0)))
        stream += 2
        await turns(1)
        client.reader._buffer.clear()
        client.reader._maybe_resume_transport()
    assert stream < 4000
    await one.idle()
    await _still_serves(one, h2_client)


@pytest.mark.parametrize("piece", [frame(SETTINGS, 0, 0), frame(PING, 0, 0, b"12345678")], ids=["settings", "ping"])
async def test_floods_that_ask_for_answers(mesh: Any, upstream: Any, h2_client: Any, piece: bytes) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.writer.transport.pause_reading()
    client.send(START)
    sent = 0
    # The answers are never read: they must not be gathered without end.
    while not client.writer.transport.is_closing() and sent < 64 << 20:
        client.send(piece * 1000)
        sent += 1000 * len(piece)
        if client.writer.transport.get_write_buffer_size() > 1 << 20:
            break  # It takes no more: that is as good as closing.
        await turns(3)
    assert sent < 64 << 20
    client.abort()
    await until(lambda: not one.proxy.sessions)
    await _still_serves(one, h2_client)


async def test_a_list_of_fields_over_the_limit(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + "limits: {header_size: 4096, header_count: 20}\n")
    for fields in ([("x-a", "b" * 6000)], [(f"x-{number}", "b") for number in range(40)]):
        client = await one.connect()
        client.send(START + headers(1, [*PSEUDO, *fields]) + frame(GOAWAY, 0, 0, bytes(8)))
        await client.rest()
    assert up.received == b""
    await _still_serves(one, h2_client)


async def test_streams_at_once_are_bounded(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + "limits: {streams_per_connection: 5}\n")
    client = await one.connect()
    client.send(START + b"".join(headers(2 * number + 1, PSEUDO) for number in range(50)))
    await until(lambda: one.proxy.live)
    await turns(50)
    assert len(one.proxy.live) <= 5
    client.close()
    await one.idle()


async def test_data_on_a_closed_stream_harms_nobody(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(START + headers(1, PSEUDO))
    await until(lambda: up.received)
    await one.idle()
    client.send(frame(DATA, 0, 1, b"late") + frame(RST, 0, 1, b"\x00\x00\x00\x08"))
    client.send(frame(GOAWAY, 0, 0, bytes(8)))
    await client.rest()
    assert b"late" not in up.received
    await _still_serves(one, h2_client)
