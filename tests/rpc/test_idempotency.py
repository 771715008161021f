"""Tool calls and messages that official clients make again: carried out once, and answered under each new id."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshd.claims.rest import PIECE_BYTES, PIECES
from meshd.engines.port import Change
from meshd.filters.idempotency import Idempotency
from tests.proxy.harness import post, turns, until
from tests.rpc.test_mcp_client import MODES, client, document, text_of

if TYPE_CHECKING:
    from tests.rpc.servers import Echo, Tools

META = {"meshd/idempotency-key": "order-1"}


@pytest.mark.parametrize("mode", MODES)
async def test_an_mcp_client_that_names_a_key_in_meta(mesh: Any, serve: Any, tools: Tools, mode: str) -> None:
    made = await mesh(document(await serve(tools.app)))
    async with client(made, mode) as one:
        found = [await one.call_tool("delete", {"name": "x"}, meta=META) for _ in range(3)]
        assert [text_of(result) for result in found] == ["x is gone"] * 3
        assert tools.called == [("delete", "x")]
        # Other arguments under the same key are refused in words that the client takes.
        with pytest.raises(Exception, match="idempotency key"):
            await one.call_tool("delete", {"name": "y"}, meta=META)
        # Without a key each call is a call of its own, and the session goes on.
        await one.call_tool("delete", {"name": "z"})
        await one.call_tool("delete", {"name": "z"})
    assert tools.called == [("delete", "x"), ("delete", "z"), ("delete", "z")]
    # Another session, whose ids begin anew.
    async with client(made, mode) as one:
        assert text_of(await one.call_tool("delete", {"name": "x"}, meta=META)) == "x is gone"
    assert len(tools.called) == 3


CLAUDES = "claudecode/toolUseId"
OURS = "meshd/tool-call-id"
RANDOM = "toolu_01A09q90qw90lq917835lq9"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("meta", [{CLAUDES: RANDOM}, {OURS: "call_1"}])
async def test_the_models_tool_call_is_carried_out_once(
    mesh: Any, serve: Any, tools: Tools, mode: str, meta: dict[str, Any]
) -> None:
    made = await mesh(document(await serve(tools.app)))
    async with client(made, mode) as one:
        for _ in range(3):
            assert text_of(await one.call_tool("delete", {"name": "x"}, meta=meta)) == "x is gone"
        # Other arguments, or another of the model's calls, are another call.
        await one.call_tool("delete", {"name": "y"}, meta=meta)
        await one.call_tool("delete", {"name": "x"}, meta={OURS: "call_2"})
    # Its client has begun anew, and does not know whether it was done.
    async with client(made, mode) as one:
        assert text_of(await one.call_tool("delete", {"name": "x"}, meta=meta)) == "x is gone"
    assert tools.called == [("delete", "x"), ("delete", "y"), ("delete", "x")]


@pytest.mark.parametrize(
    ("meta", "is_known"),
    [
        ({CLAUDES: RANDOM}, True),
        ({CLAUDES: "toolu_bdrk_01A09q90qw90lq917835lq9"}, True),
        ({CLAUDES: "call_8fT2x0zZkQ3mN5pR7sV1wY4a"}, True),
        ({CLAUDES: "chatcmpl-tool-0c3ab1f2d4e5968778695a4b3c2d1e0f"}, True),
        ({CLAUDES: "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}, True),
        # Numbered anew in each turn, by some models.
        ({CLAUDES: "call_0"}, False),
        ({CLAUDES: "functions.search_the_documents:0"}, False),
        ({CLAUDES: "getTheWeatherForecast"}, False),
        ({CLAUDES: ""}, False),
        ({CLAUDES: "7" + "a" * 200}, False),
        ({CLAUDES: 17}, False),
        ({CLAUDES: None}, False),
        ({CLAUDES: ["toolu_01A09q90qw90lq917835lq9"]}, False),
        # Of others, whose names may mean anything.
        ({"callId": RANDOM}, False),
        ({"vscode.requestId": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}, False),
        ({"progressToken": RANDOM}, False),
    ],
)
async def test_which_ids_of_a_tool_call_count(mesh: Any, upstream: Any, meta: dict[str, Any], is_known: bool) -> None:
    asked = await twice(mesh, upstream, meta)
    assert asked == (1 if is_known else 2)


async def test_derived_keys_can_be_switched_off(mesh: Any, upstream: Any) -> None:
    rules = "rules:\n  - {name: none, match: {target: tools}, idempotency: {derived: false}}\n"
    assert await twice(mesh, upstream, {CLAUDES: RANDOM}, rules) == 2


async def twice(mesh: Any, upstream: Any, meta: dict[str, Any], rules: str = "") -> int:
    """Make the same call two times; return how often its server is asked."""
    asked = 0

    async def server(peer: Any) -> None:
        nonlocal asked
        while True:
            id = json.loads((await peer.request()).body)["id"]
            asked += 1
            body = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"content": []}}).encode()
            peer.reply(body, b"content-type: application/json")

    made = await mesh(document((await upstream(server)).port, rules))
    for id in (1, 2):
        params = {"name": "delete", "arguments": {"name": "x"}, "_meta": meta}
        message = json.dumps({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).encode()
        fields = ("Content-Type: application/json", "Accept: application/json, text/event-stream")
        assert json.loads((await made.fetch(post("/tools/mcp", message, *fields))).body)["id"] == id
        await made.idle()
    return asked


@pytest.mark.parametrize("id", [17, "x" * 256, "a\nb"])
async def test_nonsense_under_our_own_name_is_refused(mesh: Any, serve: Any, tools: Tools, id: Any) -> None:
    made = await mesh(document(await serve(tools.app)))
    async with client(made) as one:
        with pytest.raises(Exception, match=r"tool-call-id|tool call"):
            await one.call_tool("delete", {"name": "x"}, meta={OURS: id})
    assert tools.called == []


@pytest.mark.parametrize("mode", MODES)
async def test_progress_is_not_told_twice(mesh: Any, serve: Any, tools: Tools, mode: str) -> None:
    made = await mesh(document(await serve(tools.app)))
    steps: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with client(made, mode) as one:
        for _ in range(2):
            result = await one.call_tool("slow", {"steps": 3}, meta=META, progress_callback=progressed)
            assert text_of(result) == "done"
    assert tools.called == [("slow", 3)]
    assert steps == [0, 1, 2]


async def test_two_at_once_are_one(mesh: Any, serve: Any, tools: Tools) -> None:
    made = await mesh(document(await serve(tools.app)))
    async with client(made) as one:
        calls = [one.call_tool("delete", {"name": "x"}, meta=META) for _ in range(5)]
        assert [text_of(result) for result in await asyncio.gather(*calls)] == ["x is gone"] * 5
    assert tools.called == [("delete", "x")]


async def test_a_key_that_is_asked_for_is_asked_for_of_what_changes_something(
    mesh: Any, serve: Any, tools: Tools
) -> None:
    rules = "rules:\n  - {name: once, match: {target: tools}, idempotency: {required: true}}\n"
    made = await mesh(document(await serve(tools.app), rules))
    async with client(made) as one:
        assert len((await one.list_tools()).tools) == 3
        with pytest.raises(Exception, match="has no key"):
            await one.call_tool("delete", {"name": "x"})
        assert text_of(await one.call_tool("delete", {"name": "x"}, meta=META)) == "x is gone"


def said(id: int, message_id: str = "m1", text: str = "hello") -> bytes:
    message = {"role": "user", "kind": "message", "messageId": message_id, "parts": [{"kind": "text", "text": text}]}
    body = {"jsonrpc": "2.0", "id": id, "method": "message/send", "params": {"message": message}}
    return post("/writer/", json.dumps(body).encode(), "Content-Type: application/json")


async def test_an_a2a_message_is_known_by_its_id(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(f'upstreams:\n  writer: {{url: "http://127.0.0.1:{agent_port}", kind: agent, dialect: a2a}}\n')
    first, second = await made.fetch(said(1)), await made.fetch(said(2))
    assert (json.loads(first.body)["id"], json.loads(second.body)["id"]) == (1, 2)
    assert json.loads(first.body)["result"] == json.loads(second.body)["result"]
    assert second.get(b"idempotent-replayed") == b"true"
    assert echo.told == ["hello"]
    # Clients exist that give one id to all of their messages: other content is another message.
    for _ in range(2):
        other = await made.fetch(said(3, text="goodbye"))
        assert json.loads(other.body)["result"] != json.loads(first.body)["result"]
    assert echo.told == ["hello", "goodbye"]
    await made.fetch(said(4, "m2"))
    assert echo.told == ["hello", "goodbye", "hello"]


async def test_a_key_that_was_chosen_to_be_one_is_refused_within_json_rpc(mesh: Any, agent_port: int) -> None:
    made = await mesh(f'upstreams:\n  writer: {{url: "http://127.0.0.1:{agent_port}", kind: agent, dialect: a2a}}\n')
    keyed = said(1).replace(b"Content-Type:", b"Idempotency-Key: k1\r\nContent-Type:")
    assert "result" in json.loads((await made.fetch(keyed)).body)
    # Never with a status that breaks the session.
    refused = await made.fetch(said(2, text="other").replace(b"Content-Type:", b"Idempotency-Key: k1\r\nContent-Type:"))
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (200, -32016)


async def test_a_client_that_hangs_up_finds_the_answer(mesh: Any, upstream: Any) -> None:
    gate = asyncio.Event()
    runs: list[bytes] = []

    async def script(peer: Any) -> None:
        request = await peer.request()
        runs.append(request.body)
        await gate.wait()
        peer.reply(b'{"jsonrpc":"2.0","id":1,"result":{"n":1}}', b"content-type: application/json")

    up = await upstream(script)
    made = await mesh(f'upstreams:\n  writer: {{url: "http://127.0.0.1:{up.port}", kind: agent, dialect: a2a}}\n')
    caller = await made.connect()
    caller.send(said(1))
    await until(lambda: runs)
    caller.abort()
    await turns()
    again = asyncio.ensure_future(made.fetch(said(2)))
    await until(lambda: len(made.proxy.live) == 2)
    await turns()
    gate.set()
    assert json.loads((await again).body) == {"jsonrpc": "2.0", "id": 2, "result": {"n": 1}}
    assert len(runs) == 1


async def test_each_leg_of_a_call_is_answered_in_its_turn(mesh: Any, upstream: Any) -> None:
    asked: list[dict[str, Any]] = []

    async def server(peer: Any) -> None:
        while True:
            message = json.loads((await peer.request()).body)
            asked.append(message["params"])
            result: dict[str, Any] = {"content": [{"type": "text", "text": "gone"}], "resultType": "complete"}
            if "requestState" not in message["params"]:
                result = {"resultType": "input_required", "requestState": "theirs"}
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
            peer.reply(body, b"content-type: application/json")

    made = await mesh(document((await upstream(server)).port))
    fields = ("Content-Type: application/json", "Accept: application/json, text/event-stream")

    async def leg(id: int, **more: Any) -> dict[str, Any]:
        params = {"name": "delete", "arguments": {"name": "x"}, "_meta": META, **more}
        message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
        reply = await made.fetch(post("/tools/mcp", json.dumps(message).encode(), *fields))
        await made.idle()
        found: dict[str, Any] = json.loads(reply.body)
        return found

    yes, no = {"inputResponses": {"sure": "yes"}}, {"inputResponses": {"sure": "no"}}
    for _ in range(2):
        assert (await leg(1))["result"]["requestState"] == "theirs"
        assert (await leg(2, requestState="theirs", **yes))["result"]["content"][0]["text"] == "gone"
    # Answered otherwise, it is not carried out a second time.
    assert "idempotency key" in (await leg(3, requestState="theirs", **no))["error"]["message"]
    assert len(asked) == 2


LONG = "word " * (PIECE_BYTES // 5 * 3)


class Long:
    """A server with a long answer, plain or as the last event of a stream."""

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.asked = 0

    async def __call__(self, peer: Any) -> None:
        while True:
            id = json.loads((await peer.request()).body)["id"]
            self.asked += 1
            answer = b'{"jsonrpc":"2.0","result":{"said":"%b","id":77},"id":%d}' % (LONG.encode(), id)
            if not self.is_stream:
                peer.reply(answer, b"content-type: application/json")
                continue
            told = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1}}\n\n'
            peer.reply(told + b"event: message\ndata: " + answer + b"\n\n", b"content-type: text/event-stream")


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
async def test_a_long_answer_is_given_under_the_new_id_while_it_is_read(
    mesh: Any, upstream: Any, is_stream: bool
) -> None:
    server = Long(is_stream=is_stream)
    made = await mesh(document((await upstream(server)).port))
    fields = ("Content-Type: application/json", "Accept: application/json, text/event-stream")

    def asked(id: int) -> bytes:
        params = {"name": "delete", "arguments": {"name": "x"}, "_meta": META}
        message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
        return post("/tools/mcp", json.dumps(message).encode(), *fields)

    def answer_in(body: bytes) -> Any:
        return json.loads(body.removeprefix(b"event: message\ndata: "))

    await made.fetch(asked(5))
    (keeper,) = [one for one in made.proxy.chain.per_call if isinstance(one, Idempotency)]
    await until(lambda: not keeper.book.under_way)
    # The new id is longer, shorter, as long, and the same.
    for id in (123_456, 6, 5):
        reply = await made.fetch(asked(id))
        assert reply.get(b"idempotent-replayed") == b"true"
        if id == 5 and is_stream:
            assert b"notifications/progress" in reply.body
            continue
        assert answer_in(reply.body) == {"jsonrpc": "2.0", "result": {"said": LONG, "id": 77}, "id": id}
        # How long a stream is shows when its events have been read.
        assert (reply.get(b"content-length") is None) is (is_stream and id != 5)
    assert server.asked == 1
    # What is lost is not left out.
    store = keeper.book._shelf.store
    await store.write([Change(PIECES, (await store.keys(PIECES))[-1], None)])
    client = await made.connect(limit=1 << 22)
    client.send(asked(7))
    data = await client.rest()
    assert b"HTTP/1.1 200" in data
    assert b"0\r\n\r\n" not in data[-10:]
    assert b'"id":7}' not in data
