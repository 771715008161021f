"""A filter that must read the body of a call which streams: however it comes, it is read once and forwarded whole."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.call import NEED_BODY, WANT_BODY, NeedBody
from meshd.outcome import Fault
from tests.proxy.harness import Record, chunked, echo, get, plain_policy, post, seeded, turns, until

pytestmark = pytest.mark.both_loops

LIMITED = "limits: {request_body: 64000B, header_timeout: 10s}\n"
GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


def asking(one: Any, decision: NeedBody) -> list[bytes | None]:
    """Let the filter of the test ask so for each body; return what it was judged by: None where that was nothing."""
    bodies: list[bytes | None] = []

    def admit(call: Any) -> Any:
        if call.body is None and not call.is_body_late:
            return decision
        bodies.append(call.body)
        record = Record(call)
        one.per_call.records.append(record)
        return record

    one.per_call.on_admit = admit
    return bodies


def reading(one: Any) -> list[bytes | None]:
    return asking(one, NEED_BODY)


def wishing(one: Any) -> list[bytes | None]:
    return asking(one, WANT_BODY)


async def test_a_body_in_one_piece(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    bodies = reading(one)
    assert (await one.fetch(post("/up/x", b"hello"))).body == b"POST /x\nhello"
    assert bodies == [b"hello"]


async def test_no_body_at_all(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    bodies = reading(one)
    assert (await one.fetch(get("/up/x", method="POST"))).body == b"POST /x\n"
    assert (await one.fetch(post("/up/x", b""))).body == b"POST /x\n"
    assert bodies == [b"", b""]


async def test_a_body_byte_by_byte(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    bodies = reading(one)
    client = await one.connect()
    for byte in post("/up/x", b"in pieces"):
        client.send(bytes([byte]))
        await turns(2)
    assert (await client.reply()).body == b"POST /x\nin pieces"
    assert bodies == [b"in pieces"]


@pytest.mark.parametrize("size", [65_536, 65_537, 1_000_000])
async def test_a_body_longer_than_what_waits_for_a_connection(mesh: Any, upstream: Any, size: int) -> None:
    body = seeded(size, size)
    one = await mesh(plain_policy((await upstream(echo, limit=1 << 22)).port))
    bodies = reading(one)
    assert (await one.fetch(post("/up/x", body))).body == b"POST /x\n" + body
    assert bodies == [body]


async def test_a_chunked_body_and_what_follows_it(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    bodies = reading(one)
    client = await one.connect()
    client.send(chunked("/up/x", b"one ", b"two", trailers=b"x-sum: 7\r\n") + post("/up/y", b"next"))
    assert (await client.reply()).body == b"POST /x\none two"
    assert (await client.reply()).body == b"POST /y\nnext"
    assert bodies == [b"one two", b"next"]


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_over_the_limit_is_refused_and_never_forwarded(mesh: Any, upstream: Any, is_chunked: bool) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + LIMITED)
    reading(one)
    body = bytes(64_001)
    reply = await one.fetch(chunked("/up/x", body[:40_000], body[40_000:]) if is_chunked else post("/up/x", body))
    assert (reply.status, reply.get(b"x-meshd-reason")) == (413, b"too_large")
    await one.idle()
    assert up.received == b""
    assert (await one.fetch(post("/up/x", body[1:]))).status == 200


async def test_a_body_that_will_be_over_the_limit_is_not_waited_for(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port) + LIMITED)
    reading(one)
    client = await one.connect()
    client.send(get("/up/x", "Content-Length: 64001", "Expect: 100-continue", method="POST"))
    assert (await client.reply()).status == 413


async def test_a_caller_that_waits_for_100_continue_is_told_to_go_on(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    bodies = reading(one)
    client = await one.connect()
    client.send(get("/up/x", "Content-Length: 5", "Expect: 100-continue", method="POST"))
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert bodies == []
    client.send(b"hello")
    assert (await client.reply()).body == b"POST /x\nhello"
    assert bodies == [b"hello"]


async def test_a_caller_that_hangs_up_in_its_body(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    bodies = reading(one)
    client = await one.connect()
    client.send(get("/up/x", "Content-Length: 5", method="POST") + b"he")
    await until(lambda: one.proxy.live)
    await turns()
    client.abort()
    await one.idle()
    assert (bodies, up.received) == ([], b"")


async def test_a_caller_whose_body_stops_coming(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + LIMITED)
    reading(one)
    client = await one.connect()
    client.send(get("/up/x", "Content-Length: 5", method="POST") + b"he")
    await until(lambda: one.proxy.live)
    await turns()
    one.expire(11.0)
    assert (await client.reply()).status == 408
    assert up.received == b""


async def test_what_comes_over_http2(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    from tests.proxy.peers_h2 import echo_h2

    up = await upstream_h2(echo_h2)
    one = await mesh(plain_policy(up.port, ", protocol: h2"))
    bodies = reading(one)
    client = await h2_client(one)
    body = seeded(3, 200_000)
    half = await client.ask("/up/x", method="POST", body=body)
    assert bytes(half.body) == b"POST /x\n" + body
    id = client.request("/up/y", method="POST", end=False)
    for piece in (b"a", b"b"):
        client.send(id, piece)
    client.send(id, b"", end=True)
    assert bytes((await client.ended(id)).body) == b"POST /y\nab"
    assert bodies == [body, b"ab"]


async def test_the_frames_of_a_grpc_call(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        await server.until(lambda: half.is_ended)
        seen.append(bytes(half.body))
        server.head(half.id, ("content-type", "application/grpc"))
        server.send(half.id, bytes(half.body))
        server.h2.send_headers(half.id, [("grpc-status", "0")], end_stream=True)
        server.flush()

    seen: list[bytes] = []
    one = await mesh(plain_policy((await upstream_h2(script)).port, kind="agent"))
    bodies = reading(one)
    client = await h2_client(one)
    frame = b"\x00\x00\x00\x00\x03abc"
    id = client.request("/pkg.Service/Call", *GRPC, method="POST", end=False, authority="up.mesh")
    client.send(id, frame[:4])
    await turns()
    client.send(id, frame[4:], end=True)
    half = await client.ended(id)
    assert (half.trailers or {}).get("grpc-status") == "0"
    assert bytes(half.body) == frame
    assert bodies == seen == [frame]


async def test_a_stream_both_ways_that_never_ends_its_side(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        await server.request()
        reached.append(1)

    reached: list[int] = []
    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, kind="agent") + LIMITED)
    reading(one)
    client = await h2_client(one)
    id = client.request("/pkg.Service/Chat", *GRPC, method="POST", end=False, authority="up.mesh")
    client.send(id, b"\x00\x00\x00\x00\x03abc")
    await until(lambda: one.proxy.live)
    await turns()
    one.expire(11.0)
    half = await client.ended(id)
    assert half.fields["grpc-status"] == "3"
    assert "body" in half.fields["grpc-message"]
    await one.idle()
    assert reached == []
    # And one that sends for ever comes to the limit.
    id = client.request("/pkg.Service/Chat", *GRPC, method="POST", end=False, authority="up.mesh")
    await client.send_all(id, bytes(64_001), end=False)
    assert (await client.ended(id)).fields["grpc-status"] == "8"


async def test_a_filter_that_waits_once_it_has_the_body(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    gate = one.per_call.hold()
    wait = one.per_call.on_admit

    def admit(call: Any) -> Any:
        return NEED_BODY if call.body is None else wait(call)

    one.per_call.on_admit = admit
    client = await one.connect()
    client.send(post("/up/x", b"hello"))
    await until(lambda: one.per_call.on_admit is None)
    gate.set_result("ticket")
    assert (await client.reply()).body == b"POST /x\nhello"
    assert one.calls[0].outcome.fault is Fault.NONE


async def test_a_wish_is_met_where_the_body_comes_at_once(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    bodies = wishing(one)
    assert (await one.fetch(post("/up/x", b"hello"))).body == b"POST /x\nhello"
    assert bodies == [b"hello"]


async def test_a_wish_is_dropped_where_the_body_does_not_come_soon(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    bodies = wishing(one)
    client = await one.connect()
    request = post("/up/x", b"one half, the other")
    client.send(request[:-9])
    await until(lambda: up.received.endswith(b"one half, "))
    assert bodies == [None]
    client.send(request[-9:])
    assert (await client.reply()).body == b"POST /x\none half, the other"


async def test_wishes_of_many_calls_end_each_in_its_turn(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port))
    bodies = wishing(one)
    request = post("/up/x", b"one half, the other")
    late = [await one.connect() for _ in range(5)]
    for client in late:
        client.send(request[:-9])
        # One that is met between two that are not leaves their time as it is.
        assert (await one.fetch(post("/up/x", b"hello"))).body == b"POST /x\nhello"
    await until(lambda: bodies.count(None) == 5)
    for client in late:
        client.send(request[-9:])
        assert (await client.reply()).body == b"POST /x\none half, the other"
    assert bodies.count(b"hello") == 5


@pytest.mark.parametrize("limit", [64_000, 2**20 - 1, 2**22])
async def test_a_wish_never_refuses_and_never_keeps_much(mesh: Any, upstream: Any, limit: int) -> None:
    up = await upstream(echo, limit=2**22)
    one = await mesh(plain_policy(up.port) + f"limits: {{request_body: {limit}B}}\n")
    bodies = wishing(one)
    body = seeded(5, 2**20 + 1)
    for request in (post("/up/x", body), chunked("/up/x", body[:600_000], body[600_000:])):
        assert (await one.fetch(request)).body == b"POST /x\n" + body
    assert bodies == [None, None]


@pytest.mark.parametrize("limit", [2**20 - 1, 2**20])
async def test_a_need_is_held_to_the_limit_whatever_it_is(mesh: Any, upstream: Any, limit: int) -> None:
    one = await mesh(plain_policy((await upstream(echo)).port) + f"limits: {{request_body: {limit}B}}\n")
    bodies = reading(one)
    client = await one.connect(limit=2**22)
    client.send(chunked("/up/x", b"x" * (limit + 1)))
    assert (await client.reply()).status == 413
    assert bodies == []
