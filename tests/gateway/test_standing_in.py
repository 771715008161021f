"""What a rule's fallback has in the place of a server's answer goes through what that would have gone through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.scripted import Raw, Scripted, fields_of, stateless, text, tool
from tests.ports import free_port

SERVED = b"x-meshd-served-by"
DOWN = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


def document(chain: str, more: str = "", **servers: str) -> str:
    lines = [f'  {name}: {{url: "{url}", kind: tool, dialect: mcp}}' for name, url in servers.items()]
    rule = f"  - {{match: {{target: one}}, retry: {{attempts: 0}}, fallback: {{to: [{chain}]}}}}"
    return "upstreams:\n" + "\n".join(lines) + f"\nrules:\n{rule}\n{more}"


def url(port: int, path: str = "") -> str:
    return f"http://127.0.0.1:{port}{path}"


def server(said: str, session: str = "s-1", **more: Any) -> Scripted:
    return Scripted(
        {"tools/list": {"tools": [tool("read")]}, "tools/call": lambda _: text(said), **more}, session=session
    )


CALL = {"method": "tools/call", "params": {"name": "one__read", "arguments": {"a": 1, "b": 2}}}


@pytest.fixture
async def cached(mesh: Any, upstream: Any) -> Any:
    """Return a server, a sidecar that keeps its answers, and a client with a session that has had one."""
    one = server("first")
    made = await mesh(document("{cached: 1h}", one=url((await upstream(one)).port)))
    client = await Raw(made).open()
    assert json.loads((await client.post(CALL)).body)["result"] == text("first")
    return one, made, client


async def test_a_kept_answer_has_the_id_that_was_asked_and_the_clients_session(cached: Any) -> None:
    one, _, client = cached
    one.answers["tools/call"] = DOWN
    reply = await client.post(CALL)
    assert json.loads(reply.body) == {"jsonrpc": "2.0", "id": 4, "result": text("first")}
    assert (reply.get(SERVED), reply.get(b"mcp-session-id")) == (b"cache", client.session.encode())
    other = {"method": "tools/call", "params": {"name": "one__read", "arguments": {"a": 2}}}
    assert (await client.post(other)).status == 503


async def test_it_is_a_stream_for_who_takes_nothing_else(cached: Any) -> None:
    one, made, client = cached
    body = json.dumps({"jsonrpc": "2.0", "id": "x", **CALL}).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\nmcp-session-id: {client.session}\r\n"
        f"mcp-protocol-version: 2025-11-25\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    # It asks with other fields than who was answered: for a tool that is another request.
    await made.fetch(head.encode() + body)
    one.answers["tools/call"] = DOWN
    reply = await made.fetch(head.encode() + body)
    assert (reply.get(SERVED), reply.get(b"content-type")) == (b"cache", b"text/event-stream")
    assert json.loads(reply.body.partition(b"data: ")[2])["id"] == "x"


async def test_a_server_whose_answers_are_kept_answers_what_it_was_asked(cached: Any) -> None:
    one, _, client = cached
    one.answers["tools/call"] = _answer(b'{"jsonrpc":"2.0","id":77,"result":{"content":[]}}')
    # What answers another call is no answer; what was kept stands in for it.
    reply = await client.post(CALL)
    assert (reply.get(SERVED), json.loads(reply.body)["result"]) == (b"cache", text("first"))


def _answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"code": -1, "message": "not now"}},
        {"result": {"task": {"taskId": "t"}}},
        {"result": {"resultType": "input_required", "requestState": "x"}},
    ],
    ids=["error", "task", "question"],
)
async def test_what_is_no_whole_result_takes_the_place_of_none(cached: Any, said: Any) -> None:
    one, _, client = cached
    one.answers["tools/call"] = lambda asked: _answer(
        json.dumps({"jsonrpc": "2.0", "id": asked["id"], **said}).encode()
    )
    assert said.items() <= json.loads((await client.post(CALL)).body).items()
    one.answers["tools/call"] = DOWN
    assert json.loads((await client.post(CALL)).body)["result"] == text("first")


async def test_a_client_of_2026_gets_what_its_revision_asks_for(mesh: Any, upstream: Any) -> None:
    one = server("first")
    made = await mesh(document("{cached: 1h}", one=url((await upstream(one)).port)))
    client = Raw(made)
    asked = stateless("tools/call", **CALL["params"])  # type: ignore[arg-type]
    fields = fields_of("tools/call", "one__read")
    assert json.loads((await client.post(asked, *fields)).body)["result"]["resultType"] == "complete"
    one.answers["tools/call"] = DOWN
    reply = await client.post(asked, *fields)
    assert reply.get(SERVED) == b"cache"
    assert json.loads(reply.body) == {"jsonrpc": "2.0", "id": 2, "result": {**text("first"), "resultType": "complete"}}


async def test_it_is_as_long_as_a_result_may_be(mesh: Any, upstream: Any) -> None:
    one = server("long " * 4000)
    more = "mcp: {result_tokens_max: 200}\n"
    made = await mesh(document("{reply: instead}", more, one=url((await upstream(one)).port)))
    client = await Raw(made).open()
    cut = (await client.call("one__read"))["result"]["content"]
    assert "are left out" in cut[-2]["text"]
    made = await mesh(document("{cached: 1h}", more, one=url((await upstream(one)).port)))
    client = await Raw(made).open()
    await client.post(CALL)
    one.answers["tools/call"] = DOWN
    reply = await client.post(CALL)
    assert reply.get(SERVED) == b"cache"
    assert len(reply.body) < 3000


async def test_a_server_that_is_not_there_from_the_start_has_a_substitute(mesh: Any) -> None:
    made = await mesh(document("{reply: instead}", one=url(free_port())))
    client = await Raw(made).open()
    reply = await client.post(CALL)
    assert (reply.get(SERVED), reply.get(b"mcp-session-id")) == (b"reply", client.session.encode())
    said = json.loads(reply.body)
    assert (said["id"], said["result"]["content"]) == (3, [{"type": "text", "text": "instead"}])


async def test_another_server_is_asked_in_a_session_of_its_own_at_its_own_endpoint(mesh: Any, upstream: Any) -> None:
    one, two = server("of one"), server("of two", session="s-2")
    ports = (await upstream(one)).port, (await upstream(two)).port
    made = await mesh(document("{upstream: two}", one=url(ports[0], "/a/mcp"), two=url(ports[1], "/b")))
    client = await Raw(made).open()
    await client.post(CALL)
    one.answers["tools/call"] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
    reply = await client.post(CALL)
    assert json.loads(reply.body) == {"jsonrpc": "2.0", "id": 4, "result": text("of two")}
    assert (reply.get(SERVED), reply.get(b"mcp-session-id")) == (b"two", client.session.encode())
    (called,) = [request for request, said in two.requests if said.get("method") == "tools/call"]
    assert (called.target, called.get(b"mcp-session-id")) == (b"/b", b"s-2")


@pytest.mark.parametrize(
    "rule",
    [
        "  - {match: {target: two, tool: read}, deny: not there}\n",
        "  - {match: {target: two, operation: tools/call}, deny: not there}\n",
        "  - {match: {target: two}, allow: {tools: [write]}}\n",
    ],
    ids=["tool", "operation", "allowed"],
)
async def test_rules_about_the_tool_hold_where_it_is_called_instead(mesh: Any, upstream: Any, rule: str) -> None:
    one, two = server("of one", **{"tools/call": b"HTTP/1.1 429 Busy\r\ncontent-length: 0\r\n\r\n"}), server("of two")
    ports = (await upstream(one)).port, (await upstream(two)).port
    made = await mesh(document("{upstream: two}", rule, one=url(ports[0]), two=url(ports[1])))
    client = await Raw(made).open()
    reply = await client.post(CALL)
    assert (reply.status, reply.get(SERVED), two.count("tools/call")) == (429, None, 0)


async def test_what_is_in_quarantine_elsewhere_is_not_called_there(mesh: Any, upstream: Any) -> None:
    one, two = server("of one", **{"tools/call": b"HTTP/1.1 429 Busy\r\ncontent-length: 0\r\n\r\n"}), server("of two")
    ports = (await upstream(one)).port, (await upstream(two)).port
    made = await mesh(document("{upstream: two}, {reply: instead}", one=url(ports[0]), two=url(ports[1])))
    made.proxy.quarantine = {"two": frozenset({("tool", "read")})}
    client = await Raw(made).open()
    reply = await client.post(CALL)
    assert (reply.get(SERVED), two.count("tools/call")) == (b"reply", 0)


async def test_a_kept_list_does_not_tell_what_is_in_quarantine(mesh: Any, upstream: Any) -> None:
    one = server("of one", **{"tools/list": {"tools": [tool("read"), tool("bad")]}})
    made = await mesh(document("{cached: 1h}", one=url((await upstream(one)).port)))
    client = Raw(made)
    assert b"bad" in (await client.post({"method": "tools/list"}, path="/one/mcp")).body
    made.proxy.quarantine = {"one": frozenset({("tool", "bad")})}
    one.answers["tools/list"] = DOWN
    reply = await client.post({"method": "tools/list"}, path="/one/mcp")
    assert reply.get(SERVED) == b"cache"
    assert [one["name"] for one in json.loads(reply.body)["result"]["tools"]] == ["read"]
