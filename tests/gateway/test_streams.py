"""What is said unasked, on the stream of the client that it is for; and streams that nobody reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.conftest import document
from tests.gateway.scripted import Raw, Scripted, fields_of, stateless, text, tool
from tests.proxy.harness import until

CHANGED = b'data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWERS = {"tools/list": {"tools": [tool("good")]}, "tools/call": text("done")}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def behind(mesh: Any, upstream: Any, **servers: Any) -> Any:
    return await mesh(document({name: (await upstream(one)).port for name, one in servers.items()}))


async def listening(raw: Raw, *fields: str) -> Any:
    """Open the client's stream; return its connection when its head has come."""
    client = await raw.mesh.connect()
    lines = ["GET /mcp HTTP/1.1", "host: 127.0.0.1", "accept: text/event-stream", f"mcp-session-id: {raw.session}"]
    client.send("\r\n".join([*lines, *fields]).encode() + b"\r\n\r\n")
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return client


async def test_each_server_is_heard_on_the_clients_stream(mesh: Any, upstream: Any) -> None:
    asks = b'id: 5\ndata: {"jsonrpc":"2.0","id":3,"method":"roots/list"}\n\n'
    one, two = (
        Scripted({**ANSWERS, "GET": HEAD + chunk(CHANGED)}, session="s-one"),
        Scripted({**ANSWERS, "GET": HEAD + chunk(asks)}, session="s-two"),
    )
    made = await behind(mesh, upstream, one=one, two=two)
    mine = await Raw(made).open(roots={})
    await mine.tools()
    client = await listening(mine)
    heard = b""
    while b"roots/list" not in heard or b"list_changed" not in heard:
        heard += await client.reader.read(65_536)
    assert b"id: two!5" in heard
    asked = json.loads(next(line for line in heard.split(b"\n") if b"roots/list" in line).removeprefix(b"data: "))
    await mine.post({"id": asked["id"], "result": {"roots": []}}, is_request=False)
    request, said = two.requests[-1]
    assert said == {"jsonrpc": "2.0", "id": 3, "result": {"roots": []}}
    assert request.get(b"mcp-session-id") == b"s-two"
    # What broke off is taken up where it was, at the server that its last event names.
    client.close()
    await until(lambda: not made.proxy.gateway.clients[mine.session].streams)
    client = await listening(mine, "last-event-id: two!5")
    await until(lambda: any(request.get(b"last-event-id") == b"5" for request, _ in two.requests))
    assert not any(request.get(b"last-event-id") for request, _ in one.requests)


async def test_a_stream_ends_with_its_session(mesh: Any, upstream: Any) -> None:
    server = Scripted({**ANSWERS, "GET": HEAD})
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    await mine.tools()
    client = await listening(mine)
    await until(lambda: any(request.method == b"GET" for request, _ in server.requests))
    await mine.send("DELETE", "/mcp", b"", f"mcp-session-id: {mine.session}")
    assert await client.reader.readexactly(5) == b"0\r\n\r\n"
    await until(lambda: any(request.method == b"DELETE" for request, _ in server.requests))
    await until(lambda: not made.proxy.live)


async def test_a_client_that_does_not_read_is_let_go(mesh: Any, upstream: Any) -> None:
    flood = chunk(
        b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"data":"%b"}}\n\n' % (b"x" * 60_000)
    )
    server = Scripted({**ANSWERS, "GET": HEAD + flood * 300})
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    await mine.tools()
    client = await made.connect(limit=1024)
    lines = ["GET /mcp HTTP/1.1", "host: 127.0.0.1", "accept: text/event-stream", f"mcp-session-id: {mine.session}"]
    client.send("\r\n".join(lines).encode() + b"\r\n\r\n")
    one = made.proxy.gateway.clients[mine.session]
    await until(lambda: any(request.method == b"GET" for request, _ in server.requests))
    # It is let go, nothing of it is kept, and nobody listens for it any more; its session lives on.
    await until(lambda: not one.streams)
    assert all(link.listening is None for link in one.links.values())
    assert (await mine.call("good__good"))["result"] == text("done")


async def test_a_subscription_hears_what_it_asked_for(mesh: Any, upstream: Any) -> None:
    prompts = CHANGED.replace(b"tools", b"prompts")
    server = Scripted({**ANSWERS, "GET": HEAD + chunk(prompts) + chunk(CHANGED)})
    made = await behind(mesh, upstream, good=server)
    message = stateless("subscriptions/listen", notifications={"toolsListChanged": True, "odd": 1})
    body = json.dumps({"jsonrpc": "2.0", "id": "sub", **message}).encode()
    client = await made.connect()
    fields = ["host: 127.0.0.1", "accept: text/event-stream", *fields_of("subscriptions/listen")]
    head = "\r\n".join(["POST /mcp HTTP/1.1", *fields, f"content-length: {len(body)}"])
    client.send(head.encode() + b"\r\n\r\n" + body)
    heard = b""
    while b"tools/list_changed" not in heard:
        heard += await client.reader.read(65_536)
    said = [json.loads(line.removeprefix(b"data: ")) for line in heard.split(b"\n") if line.startswith(b"data: ")]
    assert [one["method"] for one in said] == [
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    ]
    assert said[0]["params"]["notifications"] == {"toolsListChanged": True}
    for one in said:
        assert one["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "sub"
    client.close()


async def subscribed(made: Any, id: str, **wanted: Any) -> Any:
    """Open a stream of 2026-07-28; return its connection when it was acknowledged."""
    message = stateless("subscriptions/listen", notifications=wanted)
    body = json.dumps({"jsonrpc": "2.0", "id": id, **message}).encode()
    client = await made.connect()
    fields = ["host: 127.0.0.1", "accept: text/event-stream", *fields_of("subscriptions/listen")]
    head = "\r\n".join(["POST /mcp HTTP/1.1", *fields, f"content-length: {len(body)}"])
    client.send(head.encode() + b"\r\n\r\n" + body)
    heard = b""
    while b"acknowledged" not in heard:
        heard += await client.reader.read(65_536)
    return client


def resource(uri: str) -> Any:
    return {"uri": uri, "name": uri}


async def test_who_subscribes_later_is_heard_too_by_the_server_that_has_it(mesh: Any, upstream: Any) -> None:
    def serves(*uris: str) -> Scripted:
        discovered = {"supportedVersions": ["2026-07-28"], "capabilities": {}}
        listed = {"resources": [resource(uri) for uri in uris]}
        return Scripted({"server/discover": discovered, "resources/list": listed, "subscriptions/listen": HEAD})

    one, two = serves("x://one", "x://both"), serves("x://two", "x://both")
    made = await behind(mesh, upstream, one=one, two=two)
    await Raw(made).post(stateless("resources/list"), *fields_of("resources/list"))

    def asked(server: Scripted) -> list[Any]:
        return [
            said["params"]["notifications"].get("resourceSubscriptions")
            for _, said in server.requests
            if said.get("method") == "subscriptions/listen"
        ]

    first = await subscribed(made, "a", resourceSubscriptions=["x://one"])
    await until(lambda: asked(one) == [["x://one"]] and asked(two) == [None])
    second = await subscribed(made, "b", resourceSubscriptions=["x://two", "two+x://both"])
    # Each by its server's own name, and none to a server that does not have it.
    await until(lambda: asked(two)[-1] == ["x://both", "x://two"])
    assert asked(one) == [["x://one"]]
    first.close()
    second.close()


@pytest.mark.parametrize("way", ["of its own", "of a call"])
async def test_who_subscribes_without_a_session_hears_a_server_with_sessions(
    mesh: Any, upstream: Any, way: str
) -> None:
    updated = b'data: {"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"x://one"}}\n\n'
    told = CHANGED + updated

    def call(said: Any) -> bytes:
        answer = json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": text("done")}).encode()
        before = told if way == "of a call" else b""
        return HEAD + chunk(before + b"data: " + answer + b"\n\n") + b"0\r\n\r\n"

    listed = {"resources": [resource("x://one"), resource("x://two")]}
    more = {"GET": HEAD + chunk(told)} if way == "of its own" else {}
    server = Scripted({**ANSWERS, "resources/list": listed, "resources/subscribe": {}, "tools/call": call, **more})
    made = await behind(mesh, upstream, good=server)
    await Raw(made).post(stateless("resources/list"), *fields_of("resources/list"))
    client = await subscribed(made, "a", toolsListChanged=True, resourceSubscriptions=["x://one"])
    # Such a server tells of a resource those alone who have subscribed to it.
    await until(lambda: server.count("resources/subscribe") == 1)
    assert [said["params"] for _, said in server.requests if said.get("method") == "resources/subscribe"] == [
        {"uri": "x://one"}
    ]
    message = stateless("tools/call", name="good__good", arguments={})
    reply = await Raw(made).post(message, *fields_of("tools/call", "good__good"))
    # It is another client's call: that hears its answer, and no more.
    assert b"changed" not in reply.body
    assert b"updated" not in reply.body
    heard = b""
    while b"tools/list_changed" not in heard or b"resources/updated" not in heard:
        heard += await client.reader.read(65_536)
    # Who subscribes to the same later needs no second subscription, and to another one more.
    second = await subscribed(made, "b", resourceSubscriptions=["x://one", "x://two"])
    await until(lambda: server.count("resources/subscribe") == 2)
    assert server.requests[-1][1]["params"] == {"uri": "x://two"}
    client.close()
    second.close()
