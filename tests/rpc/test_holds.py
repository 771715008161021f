"""Calls that a person decides, as the official clients live through them: held, then answered or refused."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anthropic
import grpc
import openai
import pytest
from a2a.client import A2AClientError
from mcp import MCPError

from meshd.refusal import Reason, Refused
from tests.proxy.harness import until
from tests.rpc.test_a2a_client import client as a2a_client
from tests.rpc.test_a2a_client import document as a2a_document
from tests.rpc.test_a2a_client import say
from tests.rpc.test_mcp_client import client as mcp_client
from tests.rpc.test_mcp_client import document as mcp_document
from tests.rpc.test_mcp_client import text_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.proxy.harness import Mesh, Peer
    from tests.rpc.servers import Echo

DENIED = Refused(Reason.APPROVAL_DENIED, "Ada said no: not on a Friday")


class Held:
    """One call that is held, from its arrival at the gate to its end."""

    def __init__(self, mesh: Mesh, doing: Awaitable[Any], *, fits: Any = bool) -> None:
        self.mesh = mesh
        self._gate = mesh.per_call.hold(is_hold=True, fits=fits)
        self._doing = asyncio.ensure_future(doing)

    async def at_the_gate(self) -> Held:
        await until(lambda: self.mesh.per_call.on_admit is None or self._doing.done())
        assert not self._doing.done(), self._doing
        return self

    async def wait(self, *, seconds: tuple[float, ...] = (4, 11, 11)) -> Held:
        """Let time pass as the sweep sees it; nobody sleeps."""
        await self.at_the_gate()
        for ahead_s in seconds:
            self.mesh.expire(ahead_s)
            for _ in range(20):
                await asyncio.sleep(0)
        assert not self._doing.done(), self._doing
        return self

    async def end(self) -> Any:
        return await self._doing

    @property
    def is_let_go(self) -> bool:
        """Nobody waits for the decision any more."""
        return self._gate.cancelled()

    async def decide(self, decision: Any) -> Any:
        if isinstance(decision, Refused):
            self._gate.set_exception(decision)
        else:
            self._gate.set_result(decision)
        return await self._doing


# ---------------------------------------------------------------------- LLMs

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x"}
OPENAI_EVENTS = [
    json.dumps({**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hel"}}]}),
    json.dumps({**CHUNK, "choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}]}),
    "[DONE]",
]
OPENAI_PLAIN = json.dumps(
    {
        "id": "c", "object": "chat.completion", "created": 1, "model": "gpt-x",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()  # fmt: skip
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_reason": None, "stop_sequence": None}
ANTHROPIC_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


def events(*pieces: str) -> bytes:
    return b"".join(f"data: {piece}\n\n".encode() for piece in pieces)


def named_events(*pieces: dict[str, Any]) -> bytes:
    return b"".join(f"event: {piece['type']}\ndata: {json.dumps(piece)}\n\n".encode() for piece in pieces)


class Llm:
    """An upstream that answers with what it was given, one reply to a request, and remembers the requests."""

    def __init__(self, *replies: tuple[bytes, bytes, bytes]) -> None:
        self.replies = list(replies)
        self.requests: list[Any] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.request())
            status, content_type, body = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            peer.reply(body, b"content-type: " + content_type, status=status)


SSE = b"text/event-stream"
JSON = b"application/json"
STREAMED = (b"200 OK", SSE, events(*OPENAI_EVENTS))
PLAIN = (b"200 OK", JSON, OPENAI_PLAIN)


def llm_document(port: int, dialect: str) -> str:
    return f'upstreams:\n  llm: {{url: "http://127.0.0.1:{port}", kind: llm, dialect: {dialect}}}\n'


def openai_of(mesh: Mesh) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{mesh.port}/llm/v1", api_key="sk-x", max_retries=0)


async def chat_streamed(mesh: Mesh) -> str:
    async with openai_of(mesh) as one:
        stream = await one.chat.completions.create(
            model="gpt-x", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=9
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def chat(mesh: Mesh) -> str | None:
    async with openai_of(mesh) as one:
        made = await one.chat.completions.create(
            model="gpt-x", messages=[{"role": "user", "content": "hi"}], max_tokens=9
        )
        return made.choices[0].message.content


async def message_streamed(mesh: Mesh) -> str:
    base = f"http://127.0.0.1:{mesh.port}/llm"
    async with (
        anthropic.AsyncAnthropic(base_url=base, api_key="x", max_retries=0) as one,
        one.messages.stream(model="c", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream,
    ):
        return "".join([text async for text in stream.text_stream])


@pytest.mark.parametrize("is_shown", [False, True], ids=["at once", "after a while"])
async def test_openai_streaming(mesh: Any, upstream: Any, is_shown: bool) -> None:
    llm = Llm(STREAMED)
    made = await mesh(llm_document((await upstream(llm)).port, "openai"))
    held = Held(made, chat_streamed(made))
    await (held.wait() if is_shown else held.at_the_gate())
    assert not llm.requests
    assert await held.decide(None) == "hello"
    held = Held(made, chat_streamed(made))
    await (held.wait() if is_shown else held.at_the_gate())
    with pytest.raises(openai.APIError, match="Ada said no") as caught:
        await held.decide(DENIED)
    assert isinstance(caught.value, openai.PermissionDeniedError) is not is_shown
    assert caught.value.code == "meshd_approval_denied"
    assert len(llm.requests) == 1


async def test_openai_not_streaming(mesh: Any, upstream: Any) -> None:
    llm = Llm(PLAIN)
    made = await mesh(llm_document((await upstream(llm)).port, "openai"))
    held = await Held(made, chat(made)).wait()
    assert await held.decide(None) == "hello"
    held = await Held(made, chat(made)).wait()
    with pytest.raises(openai.PermissionDeniedError, match="Ada said no"):
        await held.decide(DENIED)
    held = await Held(made, chat(made)).wait()
    pending = Refused(Reason.APPROVAL_PENDING, "Approval ap-1 is pending")
    with pytest.raises(openai.APIStatusError, match="ap-1 is pending") as caught:
        await held.decide(pending)
    assert caught.value.status_code == 428
    assert len(llm.requests) == 1


@pytest.mark.parametrize("is_shown", [False, True], ids=["at once", "after a while"])
async def test_anthropic_streaming(mesh: Any, upstream: Any, is_shown: bool) -> None:
    llm = Llm((b"200 OK", SSE, named_events(*ANTHROPIC_EVENTS)))
    made = await mesh(llm_document((await upstream(llm)).port, "anthropic"))
    held = Held(made, message_streamed(made))
    await (held.wait() if is_shown else held.at_the_gate())
    assert await held.decide(None) == "hello"
    held = Held(made, message_streamed(made))
    await (held.wait() if is_shown else held.at_the_gate())
    with pytest.raises(anthropic.APIStatusError, match="Ada said no"):
        await held.decide(DENIED)
    assert len(llm.requests) == 1


async def test_another_attempt_is_made_although_the_head_is_out(mesh: Any, upstream: Any) -> None:
    llm = Llm((b"503 Service Unavailable", JSON, b"{}"), STREAMED)
    made = await mesh(llm_document((await upstream(llm)).port, "openai"))
    held = await Held(made, chat_streamed(made)).wait()
    assert await held.decide(None) == "hello"
    assert len(llm.requests) == 2
    assert all(request.get(b"accept-encoding") == b"identity" for request in llm.requests)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((b"400 Bad Request", JSON, b'{"error": {"message": "no such model"}}'), "llm answered 400: no such model"),
        ((b"401 Unauthorized", b"text/plain", b"go away"), "llm answered 401"),
        (PLAIN, "answered with something else than a stream"),
    ],
    ids=["error", "text", "no stream"],
)
async def test_an_upstreams_error_becomes_an_event(mesh: Any, upstream: Any, reply: Any, words: str) -> None:
    llm = Llm(reply)
    made = await mesh(llm_document((await upstream(llm)).port, "openai"))
    held = await Held(made, chat_streamed(made)).wait()
    with pytest.raises(openai.APIError, match=words):
        await held.decide(None)
    assert (await made.fetch(b"GET /llm/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")).status == int(reply[0][:3])


async def test_an_upstream_that_is_not_there_becomes_an_event(mesh: Any, upstream: Any) -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.request()
        peer.abort()

    made = await mesh(llm_document((await upstream(hang_up)).port, "openai") + "rules: [{retry: {attempts: 0}}]\n")
    held = await Held(made, chat_streamed(made)).wait()
    with pytest.raises(openai.APIError, match="llm"):
        await held.decide(None)


# ---------------------------------------------------------------------- MCP


def is_tool(call: Any) -> bool:
    return call.rpc is not None and bool(call.rpc.tool)


@pytest.mark.parametrize("is_json", [False, True], ids=["sse", "json"])
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("is_progress_asked", [False, True], ids=["comments", "progress"])
async def test_mcp(mesh: Any, serve: Any, mode: str, is_json: bool, is_progress_asked: bool) -> None:
    from tests.rpc.servers import Tools

    tools = Tools(is_json=is_json)
    made = await mesh(mcp_document(await serve(tools.app)))
    told: list[str | None] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)

    asked: dict[str, Any] = {"progress_callback": progressed} if is_progress_asked else {}
    async with mcp_client(made, mode) as one:
        await one.list_tools()
        held = await Held(made, one.call_tool("add", {"a": 1, "b": 2}, **asked), fits=is_tool).wait()
        assert not tools.called
        assert text_of(await held.decide(None)) == "3"
        assert told == (["waiting for approval"] * 3 if is_progress_asked else [])
        held = await Held(made, one.call_tool("add", {"a": 3, "b": 4}, **asked), fits=is_tool).wait()
        result = await held.decide(DENIED)
        assert result.is_error
        assert text_of(result) == "Ada said no: not on a Friday"
        held = await Held(made, one.call_tool("add", {"a": 3, "b": 4}, **asked), fits=is_tool).wait()
        with pytest.raises(MCPError) as caught:
            await held.decide(Refused(Reason.STORE_UNAVAILABLE, "nobody can be asked"))
        assert caught.value.error.code == -32603
        # Held for a moment only: a plain answer, as without a hold.
        held = await Held(made, one.call_tool("add", {"a": 5, "b": 6}, **asked), fits=is_tool).at_the_gate()
        assert text_of(await held.decide(None)) == "11"
    assert tools.called == [("add", (1, 2)), ("add", (5, 6))]


async def test_an_mcp_servers_error_becomes_an_event(mesh: Any, upstream: Any) -> None:
    bodies = [
        (b"404 Not Found", JSON, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"no session"}}'),
        (b"502 Bad Gateway", b"text/html", b"<html>"),
        (b"200 OK", JSON, b'{\r\n "jsonrpc": "2.0",\n "id": 7,\n "result": {"content": []}\n}'),
    ]
    server = Llm(*bodies)
    made = await mesh(mcp_document((await upstream(server)).port))
    body = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"add"}}'
    said = []
    for _ in bodies:
        client = await made.connect()
        fields = (
            b"Host: 127.0.0.1\r\nAccept-Encoding: gzip\r\n"
            b"Accept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n"
        )
        doing = asyncio.ensure_future(client.ask(b"POST /tools/mcp HTTP/1.1\r\n" + fields % len(body) + body))
        reply = await (await Held(made, doing).wait(seconds=(4,))).decide(None)
        assert (reply.status, reply.get(b"content-type")) == (200, SSE)
        comment, _, rest = reply.body.partition(b"\n\n")
        assert comment.startswith(b":")
        data = b"\n".join(line[6:] for line in rest.split(b"\n") if line.startswith(b"data: "))
        said.append(json.loads(data))
    # Its head says nothing of an encoding, so there must be none.
    assert [request.get(b"accept-encoding") for request in server.requests] == [b"identity"] * 3
    assert said[0] == {"jsonrpc": "2.0", "id": 7, "error": {"code": -32001, "message": "no session"}}
    assert (said[1]["id"], said[1]["error"]["code"]) == (7, -32603)
    assert "tools answered 502" in said[1]["error"]["message"]
    assert said[2] == {"jsonrpc": "2.0", "id": 7, "result": {"content": []}}


# ---------------------------------------------------------------------- A2A


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("version", ["1.0", "0.3"])
async def test_a2a(mesh: Any, agent_port: int, echo: Echo, version: str, is_streaming: bool) -> None:
    made = await mesh(a2a_document(agent_port))
    async with a2a_client(made, version, is_streaming=is_streaming) as one:
        held = await Held(made, say(one, "hello")).wait(seconds=(4, 4, 4))
        assert not echo.told
        assert await held.decide(None) == "you said hello"
        held = await Held(made, say(one, "again")).wait(seconds=(4, 4, 4))
        with pytest.raises(A2AClientError, match="Ada said no"):
            await held.decide(DENIED)
        assert await say(one, "third") == "you said third"


# ---------------------------------------------------------------------- gRPC


async def test_grpc_unary(mesh: Any) -> None:
    server = grpc.aio.server()

    async def find(request: bytes, context: Any) -> bytes:
        return b"found " + request

    handler = grpc.method_handlers_generic_handler("r.R", {"Find": grpc.unary_unary_rpc_method_handler(find)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        made = await mesh(f'upstreams:\n  up: {{url: "http://127.0.0.1:{port}", kind: tool, protocol: h2}}\n')
        async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel:
            call = channel.unary_unary("/r.R/Find")

            async def ask(timeout: float | None = None) -> Any:
                return await call(b"it", metadata=(("x-meshd-target", "up"),), timeout=timeout)

            held = await Held(made, ask()).wait()
            assert await held.decide(None) == b"found it"
            held = await Held(made, ask()).wait()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await held.decide(DENIED)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "Ada said no" in str(caught.value.details())
            held = await Held(made, ask(60.0)).wait(seconds=(1,))
            made.expire(60)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await held.end()
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: held.is_let_go)
    finally:
        await server.stop(0)
