"""HTTP/2 from callers: streams side by side, in both translations, with trailers, cancels and windows kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.outcome import Fault
from tests.proxy.harness import echo, plain_policy, seeded, turns, until
from tests.proxy.peers_h2 import H2Client, echo_h2

H2_OUT = ", protocol: h2"


@pytest.fixture(params=["h1 out", "h2 out"])
def echoing(request: pytest.FixtureRequest, upstream: Any, upstream_h2: Any) -> Any:
    """Return a function that starts an echoing upstream on either wire; it returns the policy for it."""

    async def start() -> str:
        if request.param == "h1 out":
            return plain_policy((await upstream(echo)).port)
        return plain_policy((await upstream_h2(echo_h2)).port, H2_OUT)

    return start


@pytest.mark.both_loops
async def test_a_call_and_its_body(mesh: Any, h2_client: Any, echoing: Any) -> None:
    one = await mesh(await echoing())
    client = await h2_client(one)
    half = await client.ask("/up/a?b=c", method="POST", body=b"body")
    assert (half.status, half.body) == (200, b"POST /a?b=c\nbody")
    assert (await client.ask("/up/b")).body == b"GET /b\n"
    assert (await client.ask("/nobody")).status == 404


@pytest.mark.both_loops
async def test_a_hundred_streams_with_their_bodies_interleaved(mesh: Any, h2_client: Any, echoing: Any) -> None:
    one = await mesh(await echoing())
    client = await h2_client(one)
    bodies = {client.request(f"/up/{n}", method="POST", end=False): seeded(n, 3_000 + 997 * n) for n in range(100)}
    await asyncio.gather(*(client.send_all(id, body) for id, body in bodies.items()))
    for number, (id, body) in enumerate(bodies.items()):
        half = await client.ended(id)
        assert half.status == 200
        assert half.body == b"POST /%d\n" % number + body


async def test_large_bodies_in_both_directions(mesh: Any, h2_client: Any, echoing: Any) -> None:
    one = await mesh(await echoing())
    client = await h2_client(one)
    body = seeded(1, 5_000_000)
    half = await client.ask("/up/a", method="PUT", body=body)
    assert half.body == b"PUT /a\n" + body


async def test_trailers_of_a_request_and_a_reply(mesh: Any, upstream: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        await server.ended(half.id)
        assert half.trailers == {"x-sum": "1"}
        server.head(half.id)
        server.send(half.id, b"body")
        server.h2.send_headers(half.id, [("x-end", "yes"), ("x-meshd-hops", "1")], end_stream=True)
        server.flush()

    async def script_h1(peer: Any) -> None:
        request = await peer.request()
        assert request.trailers == [(b"x-sum", b"1")]
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-End: yes\r\n\r\n")

    for policy in (
        plain_policy((await upstream_h2(script)).port, H2_OUT),
        plain_policy((await upstream(script_h1)).port),
    ):
        client = await h2_client(await mesh(policy))
        id = client.request("/up/a", method="POST", end=False)
        client.h2.send_data(id, b"data")
        client.h2.send_headers(id, [("x-sum", "1")], end_stream=True)
        client.flush()
        half = await client.ended(id)
        assert (half.status, half.body, half.trailers) == (200, b"body", {"x-end": "yes"})


@pytest.mark.parametrize("status", ["204", "304"])
async def test_replies_without_a_body(mesh: Any, upstream: Any, h2_client: Any, status: str) -> None:
    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            peer.send(f"HTTP/1.1 {status} Nothing\r\nETag: x\r\n\r\n".encode())

    one = await mesh(plain_policy((await upstream(script)).port))
    client = await h2_client(one)
    half = await client.ask("/up/a")
    assert (half.fields[":status"], half.fields["etag"], half.body, half.reset) == (status, "x", b"", None)


async def test_head_keeps_its_length(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    client = await h2_client(await mesh(plain_policy((await upstream(script)).port)))
    half = await client.ask("/up/a", method="HEAD")
    assert (half.fields["content-length"], half.body, half.reset) == ("1000", b"", None)


async def test_informational_replies_and_fields(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        assert request.get(b"cookie") == b"a=1; b=2"
        assert request.get(b"te") is None
        peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        peer.reply(b"x", b"Connection: x-drop", b"X-Drop: 1", b"X-Kept: 1", b"Keep-Alive: 1")

    client = await h2_client(await mesh(plain_policy((await upstream(script)).port)))
    half = await client.ask("/up/a", ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"))
    assert half.informational == [{":status": "103", "link": "</a>"}]
    assert "x-kept" in half.fields
    assert not {"x-drop", "connection", "keep-alive", "transfer-encoding"} & set(half.fields)


async def test_a_cancelled_stream_reaches_the_upstream_alone(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        if request.target == b"/kept":
            await until(lambda: cancelled)
            peer.reply(b"kept")
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await peer.closed()
            cancelled.append(1)

    cancelled: list[int] = []
    one = await mesh(plain_policy((await upstream(script)).port))
    client = await h2_client(one)
    kept, given_up = client.request("/up/kept"), client.request("/up/given-up")
    await client.until(lambda: client.streams.get(given_up) and client.streams[given_up].body)
    client.h2.reset_stream(given_up)
    client.flush()
    assert (await client.ended(kept)).body == b"kept"
    assert one.calls[1].outcome.fault is Fault.CALLER_GONE


async def test_a_cancelled_stream_cancels_the_upstreams_stream(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        await server.request(1)
        gone, kept = server.streams.values()
        server.head(gone.id)
        # It goes on sending after the reset: what is on its way must harm nobody.
        while gone.reset is None:
            if server.h2.local_flow_control_window(gone.id) > 100:
                server.send(gone.id, b"x" * 100)
            await asyncio.sleep(0)
        server.reply(kept.id, b"kept")
        again = await server.request(2)
        server.reply(again.id, b"again")

    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, H2_OUT))
    client = await h2_client(one)
    gone = client.request("/up/gone")
    await until(lambda: up.servers and up.servers[0].streams)
    kept = client.request("/up/kept")
    await client.until(lambda: client.streams.get(gone) and client.streams[gone].body)
    client.h2.reset_stream(gone)
    client.flush()
    assert (await client.ended(kept)).body == b"kept"
    assert (await client.ask("/up/again")).body == b"again"
    assert len(up.servers) == 1


async def test_a_caller_that_leaves_takes_all_its_streams(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.closed()
        hung_up.append(1)

    hung_up: list[int] = []
    one = await mesh(plain_policy((await upstream(script)).port))
    client = await h2_client(one)
    for number in range(10):
        client.request(f"/up/{number}")
    await until(lambda: len(one.proxy.live) == 10)
    await turns()
    client.writer.transport.abort()
    await one.idle()
    await until(lambda: not sum(one.proxy.pools.open_connections().values()))


async def test_a_refusal_before_the_body_is_whole_stops_the_body(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await h2_client(one)
    id = client.request("/nobody", method="POST", end=False)
    half = await client.ended(id)
    assert (half.status, half.is_ended) == (404, True)
    await client.until(lambda: half.reset == 0)  # NO_ERROR: keep the reply, send no more
    assert (await client.ask("/up/a")).status == 200


async def test_drain_says_goodbye_and_finishes(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await until(lambda: go)
        peer.reply(b"done")

    go: list[int] = []
    one = await mesh(plain_policy((await upstream(script)).port))
    client, idle = await h2_client(one), await h2_client(one)
    id = client.request("/up/a")
    await until(lambda: one.proxy.live)
    draining = asyncio.ensure_future(one.proxy.drain(30))
    await until(lambda: client.goaway is not None and idle.is_closed)
    go.append(1)
    assert (await client.ended(id)).body == b"done"
    await client.closed()
    assert await draining is True


async def test_one_connection_serves_both_wires_side_by_side(mesh: Any, upstream: Any, h2_client: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await h2_client(one)
    plain = await one.connect()
    assert (await client.ask("/up/a")).body == b"GET /a\n"
    assert (await plain.ask(b"GET /up/b HTTP/1.1\r\nHost: localhost\r\n\r\n")).body == b"GET /b\n"


async def test_the_first_bytes_one_by_one(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    from h2.config import H2Configuration
    from h2.connection import H2Connection

    client = await one.connect()
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/up/a")]
    connection.send_headers(1, head, end_stream=True)
    for byte in connection.data_to_send():
        client.send(bytes([byte]))
        await turns(2)
    body = b""
    while b"GET /a" not in body:
        for event in connection.receive_data(await client.reader.read(65_536)):
            body += getattr(event, "data", b"") or b""


async def test_a_call_framed_as_grpc_keeps_http2_to_its_end(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request(0)
        assert (half.fields["te"], half.fields["content-type"]) == ("trailers", "application/grpc")
        server.head(half.id, ("content-type", "application/grpc"))
        await server.until(lambda: half.body == b"one")
        server.send(half.id, b"first")
        await server.ended(half.id)
        assert half.body == b"onetwo"
        server.h2.send_headers(half.id, [("grpc-status", "0")], end_stream=True)
        server.flush()

    one = await mesh(plain_policy((await upstream_h2(script)).port))
    client = await h2_client(one)
    grpc = (("content-type", "application/grpc"), ("te", "trailers"))
    id = client.request("/up/Service/Method", *grpc, method="POST", end=False)
    client.send(id, b"one")
    # Both directions at once: the reply begins before the request has ended.
    await client.until(lambda: client.streams.get(id) and client.streams[id].body == b"first")
    client.send(id, b"two", end=True)
    half = await client.ended(id)
    assert half.trailers == {"grpc-status": "0"}
    refused = await client.ask("/nobody/Service/Method", *grpc, method="POST", body=b"")
    assert (refused.status, refused.fields["grpc-status"]) == (200, "5")


async def test_connect_over_http2(mesh: Any, upstream: Any, h2_client: Any) -> None:
    async def script(peer: Any) -> None:
        assert await peer.reader.readexactly(5) == b"hello"
        peer.send(b"world")
        assert await peer.reader.read() == b"more"
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await h2_client(one, is_strict=False)
    id = client.h2.get_next_available_stream_id()
    client.h2.send_headers(id, [(":method", "CONNECT"), (":authority", f"127.0.0.1:{up.port}")])
    client.send(id, b"hello")
    await client.until(lambda: client.streams.get(id) and client.streams[id].body == b"world")
    assert client.streams[id].status == 200
    client.send(id, b"more", end=True)
    assert (await client.ended(id)).is_ended
    await one.idle()


async def test_streams_that_wait_do_not_hold_the_window_of_the_connection(
    mesh: Any, upstream_h2: Any, h2_client: Any
) -> None:
    async def script(server: Any) -> None:
        await server.closed()

    # Each of 320 streams sends less than what is acknowledged at once, all of them twice the connection's window.
    document = plain_policy((await upstream_h2(script)).port, H2_OUT) + "\nlimits: {streams_per_connection: 1000}\n"
    one = await mesh(document)
    client = await h2_client(one)
    ids = [client.request(f"/up/{number}", method="POST", end=False) for number in range(320)]
    for id in ids:
        await client.send_all(id, bytes(30_000), end=False)
    assert all(client.h2.local_flow_control_window(id) > 0 for id in ids)
    client.close()
    await one.idle()


async def test_the_end_comes_through_with_the_last_bytes_and_by_itself(mesh: Any, h2_client: Any, echoing: Any) -> None:
    one = await mesh(await echoing())
    client = await h2_client(one)
    for pieces in ([b"one"], [b"one", b"two"], [b"one", b""], [b""]):
        id = client.request("/up/a", method="POST", end=False)
        for piece in pieces[:-1]:
            client.send(id, piece)
        client.send(id, pieces[-1], end=True)
        half = await client.ended(id)
        assert (half.status, bytes(half.body)) == (200, b"POST /a\n" + b"".join(pieces))


async def test_the_last_bytes_of_an_inbound_call_are_heard_as_all_others(
    mesh: Any, upstream_h2: Any, h2_client: Any
) -> None:
    """What Correlation knows of a call is what passed of its body, and most bodies are one frame that ends them."""
    heard: list[bytes] = []
    planes: list[Any] = []

    async def script(server: Any) -> None:
        for number in range(2):
            half = await server.request(number)
            await server.ended(half.id)
            heard.append(planes[0].calls[-1].call.heard_by.heard())
            server.reply(half.id)

    one = await mesh("upstreams: {}\n", app=f"http://127.0.0.1:{(await upstream_h2(script)).port}")
    planes.append(one)
    client = await H2Client.connect(one.inbound_port)
    try:
        for body in (b"the first opens the connection", b"the second finds it open"):
            id = client.request("/a", ("content-type", "application/grpc"), method="POST", end=False)
            client.send(id, body, end=True)
            await client.ended(id)
    finally:
        client.close()
    assert heard == [b"the first opens the connection", b"the second finds it open"]
