"""What nonsense does at the gateway's two sides: its clients, and servers that hang, lie, repeat and flood."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.gateway import lists, opening
from tests.gateway.conftest import document
from tests.gateway.scripted import Raw, Scripted, fields_of, stateless, text, tool

GOOD = {"tools/list": {"tools": [tool("good")]}, "tools/call": text("done")}


async def behind(mesh: Any, upstream: Any, more: str = "", options: Any = None, **servers: Scripted) -> Any:
    """Return a data plane with scripted servers behind its gateway."""
    ports = {name: (await upstream(script)).port for name, script in servers.items()}
    return await mesh(document(ports, more, options))


def error_of(reply: Any) -> tuple[int, int, str]:
    said = json.loads(reply.body)["error"]
    return reply.status, said["code"], said["message"]


async def test_a_session_of_another_client_is_none(mesh: Any, upstream: Any) -> None:
    made = await behind(mesh, upstream, good=Scripted(GOOD))
    mine = await Raw(made).open()
    assert (await mine.call("good__good"))["result"] == text("done")
    for session in ("", "x", mine.session[:-1], mine.session + "x"):
        reply = await mine.post({"method": "ping"}, f"mcp-session-id: {session}")
        assert error_of(reply)[:2] in ((404, -32001), (400, -32600))
    # The same process may call as another agent: then it is another client.
    client = made.proxy.gateway.clients[mine.session]
    client.agent = "other"
    for message in (
        {"method": "ping"},
        {"method": "tools/list"},
        {"method": "tools/call", "params": {"name": "good__good"}},
    ):
        assert error_of(await mine.post(message))[:2] == (404, -32001)
    for method in ("GET", "DELETE"):
        reply = await mine.send(method, "/mcp", b"", f"mcp-session-id: {mine.session}", "accept: text/event-stream")
        assert reply.status in (404, 405)
    assert mine.session in made.proxy.gateway.clients
    client.agent, client.peer = "agent", "10.0.0.9"
    assert error_of(await mine.post({"method": "ping"}))[:2] == (404, -32001)


async def test_a_session_that_has_ended_is_none(mesh: Any, upstream: Any) -> None:
    server = Scripted(GOOD)
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    await mine.call("good__good")
    assert (await mine.send("DELETE", "/mcp", b"", f"mcp-session-id: {mine.session}")).status == 200
    assert error_of(await mine.post({"method": "ping"}))[:2] == (404, -32001)


async def test_a_message_without_a_session(mesh: Any, upstream: Any) -> None:
    made = await behind(mesh, upstream, good=Scripted(GOOD))
    status, code, words = error_of(await Raw(made).post({"method": "tools/list"}))
    assert (status, code) == (400, -32600)
    assert "Begin with initialize" in words


@pytest.mark.parametrize(
    ("message", "fields", "said"),
    [
        (stateless("tools/call", name="good__good"), fields_of("tools/call", "good__other"), (400, -32020)),
        (stateless("tools/call", name="good__good"), fields_of("tools/list", "good__good"), (400, -32020)),
        (stateless("tools/call", name="good__good"), fields_of("tools/call"), (400, -32020)),
        (stateless("tools/list"), ["mcp-protocol-version: 2026-07-28"], (400, -32020)),
        (stateless("tools/list"), [], (400, -32020)),
        (stateless("tools/list"), ["mcp-protocol-version: 2027-01-01", "mcp-method: tools/list"], (400, -32020)),
        ({"method": "tools/list", "params": {}}, fields_of("tools/list"), (400, -32602)),
        ({"method": "tools/list", "params": {"_meta": 7}}, fields_of("tools/list"), (200, -32700)),
        (stateless("ping"), fields_of("ping"), (404, -32601)),
        (stateless("no/such"), fields_of("no/such"), (404, -32601)),
        (stateless("tools/list", cursor="x"), fields_of("tools/list"), (200, -32602)),
        (stateless("tools/call", name="nobody__x"), fields_of("tools/call", "nobody__x"), (200, -32602)),
        (stateless("completion/complete", ref=7), fields_of("completion/complete"), (200, -32602)),
        (stateless("tasks/get", taskId="x"), fields_of("tasks/get", "x"), (200, -32602)),
        (stateless("subscriptions/listen"), fields_of("subscriptions/listen"), (200, -32602)),
    ],
)
async def test_messages_of_2026_that_are_not_right(
    mesh: Any, upstream: Any, message: Any, fields: list[str], said: tuple[int, int]
) -> None:
    made = await behind(mesh, upstream, good=Scripted(GOOD), other=Scripted(GOOD))
    assert error_of(await Raw(made).post(message, *fields))[:2] == said


async def test_a_revision_that_nobody_knows(mesh: Any, upstream: Any) -> None:
    made = await behind(mesh, upstream, good=Scripted(GOOD))
    message = stateless("tools/list")
    message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2027-01-01"
    fields = ["mcp-protocol-version: 2027-01-01", "mcp-method: tools/list"]
    reply = await Raw(made).post(message, *fields)
    said = json.loads(reply.body)["error"]
    assert (reply.status, said["code"]) == (400, -32022)
    assert said["data"]["supported"] == ["2026-07-28"]


async def test_web_pages_and_foreign_hosts_get_nothing(mesh: Any, upstream: Any) -> None:
    server = Scripted(GOOD)
    made = await behind(mesh, upstream, good=server)
    raw = Raw(made)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}).encode()
    reply = await raw.send("POST", "/mcp", body, "origin: http://evil.example")
    assert reply.get(b"x-meshd-reason") == b"not_allowed"
    client = await made.connect()
    request = b"POST /mcp HTTP/1.1\r\nhost: evil.example\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert (await client.ask(request + body)).status == 421
    assert not server.requests


async def test_an_answer_that_nobody_has_asked_for(mesh: Any, upstream: Any) -> None:
    server = Scripted(GOOD)
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    reply = await mine.post({"id": "meshd-1", "result": {}}, is_request=False)
    assert reply.status == 202
    assert reply.get(b"x-meshd-decision") == b"refuse"
    assert not server.requests


# ---------------------------------------------------------------------- servers


async def listed_beside(mesh: Any, upstream: Any, answers: dict[str, Any], **options: Any) -> tuple[Any, Scripted]:
    """List with a bad server and a good one; return the client, which has seen what the good one has."""
    bad = Scripted(answers)
    made = await behind(mesh, upstream, bad=bad, good=Scripted(GOOD), **options)
    mine = await Raw(made).open()
    names = await mine.tools()
    assert "good__good" in names
    assert (await mine.call("good__good"))["result"] == text("done")
    return mine, bad


async def test_a_server_that_hangs(mesh: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "LIST_S", 0.3)
    monkeypatch.setattr(opening, "OPEN_S", 0.2)
    mine, bad = await listed_beside(mesh, upstream, {"tools/list": lambda said: None})
    # It is left alone for a while: the next list waits for nobody.
    before = bad.count("tools/list")
    assert await mine.tools() == ["good__good"]
    assert bad.count("tools/list") == before
    mine, bad = await listed_beside(mesh, upstream, {"initialize": lambda said: None})
    assert await mine.tools() == ["good__good"]


async def test_a_server_that_repeats_names_and_says_nonsense(mesh: Any, upstream: Any) -> None:
    nonsense = [
        tool("twice", description="first"),
        tool("twice", description="second"),
        tool(""),
        tool("x" * 300),
        tool("line\nbreak"),
        {"name": 7},
        7,
        {"description": "no name"},
        tool("ok", unknown={"kept": [1, 2]}, description=7),
        tool("fine", unknown={"kept": [1, 2]}),
    ]
    mine, _ = await listed_beside(mesh, upstream, {"tools/list": {"tools": nonsense}})
    reply = json.loads((await mine.post({"method": "tools/list"})).body)["result"]["tools"]
    found = {one["name"]: one for one in reply}
    assert list(found) == ["bad__twice", "bad__fine", "good__good"]
    assert found["bad__twice"]["description"] == "first"
    assert found["bad__fine"] == {**tool("fine", unknown={"kept": [1, 2]}), "name": "bad__fine"}


@pytest.mark.parametrize(
    "answer",
    [
        {"tools": "none"},
        {"tools": [{}] * 5, "nextCursor": 7},
        {"error": {"code": -1, "message": "broken"}},
        {"error": "broken"},
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno json!!",
        b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: 7\n\n",
    ],
)
async def test_a_server_whose_list_is_none(mesh: Any, upstream: Any, answer: Any) -> None:
    await listed_beside(mesh, upstream, {"tools/list": answer})


async def test_a_server_that_floods(mesh: Any, upstream: Any) -> None:
    big = {"tools": [tool(f"t{i}", description="x" * 500_000) for i in range(21)]}
    mine, _ = await listed_beside(mesh, upstream, {"tools/list": big})
    assert await mine.tools() == ["good__good"]


async def test_pages_without_end(mesh: Any, upstream: Any) -> None:
    number = 0

    def page(said: Any) -> Any:
        nonlocal number
        number += 1
        return {"tools": [tool(f"t{number}")], "nextCursor": f"c{number}"}

    _, bad = await listed_beside(mesh, upstream, {"tools/list": page})
    assert bad.count("tools/list") == 200
    _, bad = await listed_beside(mesh, upstream, {"tools/list": {"tools": [tool("t")], "nextCursor": "again"}})
    assert bad.count("tools/list") == 2


async def test_pages_are_put_together_and_given_out(mesh: Any, upstream: Any) -> None:
    def page(said: Any) -> Any:
        start = int(said.get("params", {}).get("cursor", 0))
        more = {"nextCursor": str(start + 100)} if start < 1100 else {}
        return {"tools": [tool(f"t{i}") for i in range(start, start + 100)], **more}

    made = await behind(mesh, upstream, many=Scripted({"tools/list": page}))
    mine = await Raw(made).open()
    first = json.loads((await mine.post({"method": "tools/list"})).body)["result"]
    assert len(first["tools"]) == 1000
    params = {"cursor": first["nextCursor"]}
    second = json.loads((await mine.post({"method": "tools/list", "params": params})).body)["result"]
    assert "nextCursor" not in second
    names = [one["name"] for one in first["tools"] + second["tools"]]
    assert names == [f"many__t{i}" for i in range(1200)]


async def test_a_session_that_the_server_has_forgotten(mesh: Any, upstream: Any) -> None:
    forgotten = False

    def call(said: Any) -> Any:
        nonlocal forgotten
        if not forgotten:
            forgotten = True
            return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
        return text("again")

    server = Scripted({**GOOD, "tools/call": call})
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    await mine.tools()
    assert server.count("initialize") == 1
    assert (await mine.call("good__good"))["result"] == text("again")
    assert server.count("initialize") == 2


async def test_two_servers_without_a_prefix_and_with_one_name(
    mesh: Any, upstream: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bare = {"one": ', prefix: ""', "two": ', prefix: ""'}
    made = await behind(mesh, upstream, options=bare, one=Scripted(GOOD), two=Scripted(GOOD))
    mine = await Raw(made).open()
    assert await mine.tools() == ["good"]
    assert "good of two is not listed: one has that name" in caplog.text


async def test_a_server_gets_nothing_that_is_for_another(mesh: Any, upstream: Any) -> None:
    server = Scripted(GOOD)
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    await mine.call("good__good", {}, "authorization: Bearer secret", "cookie: a=b", "x-meshd-hops: 3")
    request, said = next(one for one in server.requests if one[1].get("method") == "tools/call")
    names = {name for name, _ in request.headers}
    assert not names & {b"authorization", b"cookie", b"x-meshd-hops", b"x-meshd-context", b"traceparent"}
    assert request.get(b"mcp-session-id") == b"s-1"
    assert mine.session.encode() not in b"".join(value for _, value in request.headers)
    assert said["params"] == {"name": "good", "arguments": {}}


NOTICE = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1}}'
ANSWER = b'{"jsonrpc":"2.0","id":ID,"result":{"content":[]}}'


@pytest.mark.parametrize("before", [NOTICE, b"working ...", b'{"jsonrpc":"2.0","id":99,"result":{}}'])
async def test_of_lines_in_a_plain_answer_the_last_one_is_it(mesh: Any, upstream: Any, before: bytes) -> None:
    def call(said: Any) -> bytes:
        body = before + b"\n" + ANSWER.replace(b"ID", str(said["id"]).encode()) + b"\r\n"
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    script = Scripted({**GOOD, "tools/call": call})
    mine = await Raw(await behind(mesh, upstream, good=script)).open()
    assert (await mine.call("good__good"))["result"] == {"content": []}


@pytest.mark.parametrize("last", [NOTICE, b"done", ANSWER.replace(b"ID", b"99"), ANSWER[:-1]])
async def test_a_last_line_that_is_no_answer_is_none(mesh: Any, upstream: Any, last: bytes) -> None:
    body = NOTICE + b"\n" + last
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    script = Scripted({**GOOD, "tools/call": head + body})
    mine = await Raw(await behind(mesh, upstream, good=script)).open()
    assert "no answer to what was asked" in (await mine.call("good__good"))["error"]["message"]


async def test_an_answer_passes_as_it_is(mesh: Any, upstream: Any) -> None:
    odd = {"content": [], "unknown": {"a": [1.50, "ü"]}, "_meta": {"x/y": None}}
    made = await behind(mesh, upstream, good=Scripted({**GOOD, "tools/call": odd}))
    mine = await Raw(made).open()
    assert (await mine.call("good__good", {}, more={"unknown": 1}))["result"] == odd


async def test_what_is_kept_out_of_the_catalogue_is_neither_shown_nor_called(mesh: Any, upstream: Any) -> None:
    server = Scripted({"tools/list": {"tools": [tool("good"), tool("evil")]}, "tools/call": text("done")})
    made = await behind(mesh, upstream, good=server)

    async def admit(owner: str, origin: Any, entries: list[Any]) -> None:
        made.proxy.catalogue.replace(owner, origin, [entry for entry in entries if entry.name != "evil"])

    made.proxy.admit_listed = admit
    mine = await Raw(made).open()
    assert await mine.tools() == ["good__good"]
    assert (await mine.call("good__good"))["result"] == text("done")
    for name in ("good__evil", "evil"):
        assert (await mine.call(name))["error"]["code"] == -32602
    assert server.count("tools/call") == 1


async def test_a_tool_of_a_server_that_says_nothing_is_not_called_unknown(mesh: Any, upstream: Any) -> None:
    away = Scripted({"initialize": {"error": {"code": -32603, "message": "not yet"}}})
    there = Scripted({"tools/list": {"tools": [tool("good")]}})
    made = await mesh(document({"away": (await upstream(away)).port, "there": (await upstream(there)).port}))
    mine = await Raw(made).open()
    error = (await mine.call("away__good"))["error"]
    assert error["message"].startswith("away did not say what it has")
    assert error["data"]["reason"] == "upstream_unreachable"
    assert "Did you mean there__good?" in (await mine.call("there__goot"))["error"]["message"]
