"""JSON-RPC on the wire: which bodies are held, which pass, and what comes of those that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.proxy.harness import chunked, echo, get, plain_policy, post, until

pytestmark = pytest.mark.both_loops

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
JSON = "Content-Type: application/json"
BOTH = "Accept: application/json, text/event-stream"


def policy(port: int, dialect: str = ", dialect: mcp", extra: str = "") -> str:
    return plain_policy(port, dialect) + extra


async def test_the_body_is_forwarded_byte_for_byte(mesh: Any, upstream: Any) -> None:
    one = await mesh(policy((await upstream(echo)).port))
    body = b' {"id" : 1.50,\r\n"method":"tools/call",\n"params":{"arguments":{"b":1e0, "a":"\\u0041"},"name":"x"}'
    body += b' , "jsonrpc":"2.0"}\n'
    assert (await one.fetch(post("/up/mcp", body, JSON, BOTH))).body == b"POST /mcp\n" + body
    assert (await one.fetch(chunked("/up/mcp", body[:20], body[20:21], body[21:]))).body == b"POST /mcp\n" + body


async def test_a_call_is_held_until_its_body_is_whole(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(policy(up.port))
    client = await one.connect()
    client.send(post("/up/mcp", PING)[:-1])
    await until(lambda: one.proxy.live)
    assert not one.calls
    client.send(PING[-1:])
    assert (await client.reply("POST")).status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post("/up/mcp", b"x" * 2000, JSON), 413),
        (get("/up/mcp", "Content-Length: 100000", method="POST"), 413),
        (post("/up/mcp", b"\xff"), 400),
        (post("/up/mcp", b""), 400),
        (get("/up/mcp", method="POST"), 400),
        (post("/up/mcp", PING.replace(b"2.0", b"1.0")), 200),
        (post("/up/mcp", PING, "Mcp-Method: tools/call"), 400),
    ],
)
async def test_what_is_no_message_reaches_nobody(mesh: Any, upstream: Any, request_: bytes, status: int) -> None:
    up = await upstream(echo)
    one = await mesh(policy(up.port, extra="limits: {request_body: 1024}\n"))
    reply = await one.fetch(request_)
    assert reply.status == status
    assert reply.get(b"content-type") == b"application/json"
    said = json.loads(reply.body)
    assert said["jsonrpc"] == "2.0"
    assert said["error"]["code"] in (-32600, -32700, -32020)
    assert said["error"]["data"]["reason"] in ("malformed", "too_large")
    assert not up.received
    await one.idle()


async def test_what_has_no_dialect_in_the_policy(mesh: Any, upstream: Any) -> None:
    one = await mesh(policy((await upstream(echo)).port, dialect=""))
    seen: list[Any] = []
    one.per_call.on_admit = lambda call: seen.append(call.rpc)
    for fields, is_read in (
        ((JSON,), False),
        ((JSON, BOTH), True),
        ((BOTH,), False),
        ((JSON, "A2A-Version: 1.0"), True),
    ):
        assert (await one.fetch(post("/up/x", PING, *fields))).body.endswith(PING)
        assert (seen.pop() is not None) is is_read, fields
    # No JSON-RPC at all, from a caller that accepts both: as if nobody had looked.
    for body in (b'{"query":"x"}', b"not JSON", b"\xff", b"[1]"):
        assert (await one.fetch(post("/up/x", body, JSON, BOTH))).body.endswith(body)
        assert seen.pop() is None
    # Who says that it is MCP is taken at its word.
    reply = await one.fetch(post("/up/x", b'{"query":"x"}', JSON, "Mcp-Session-Id: s"))
    assert reply.status == 400
    assert not seen


async def test_no_tunnel_leads_past_what_is_read(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(policy(up.port))
    reply = await one.fetch(get("/up/mcp", "Connection: upgrade", "Upgrade: websocket"))
    assert (reply.status, reply.get(b"x-meshd-reason")) == (403, b"not_allowed")
    assert not up.received


async def test_plain_is_plain(mesh: Any, upstream: Any) -> None:
    one = await mesh(policy((await upstream(echo)).port, ", dialect: plain"))
    seen: list[Any] = []
    one.per_call.on_admit = lambda call: seen.append(call.rpc)
    assert (await one.fetch(post("/up/x", PING, JSON, BOTH, "Mcp-Session-Id: s"))).status == 200
    assert seen == [None]


async def test_a_message_that_comes_in_is_heard_for_what_is_inferred_from_it(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await until(lambda: go)
        peer.reply()

    go: list[int] = []
    up = await upstream(script)
    one = await mesh(policy(up.port), app=f"http://127.0.0.1:{up.port}")
    seen: list[Any] = []
    one.per_call.on_admit = lambda call: seen.append(call)
    body = b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"m"}}}'
    client = await one.connect(inbound=True)
    client.send(post("/", body, JSON, "A2A-Version: 1.0"))
    await until(lambda: up.received)
    assert seen[0].rpc.key == "m"
    assert seen[0].heard_by.heard() == body
    go.append(1)
    assert (await client.reply("POST")).status == 200
