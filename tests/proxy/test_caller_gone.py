"""Callers that hang up, at every moment of a call: each ticket settled exactly once, nothing left running for nobody."""

# ruff: noqa: E501 - bytes are easier to compare on one line

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.outcome import Fault, Verdict
from meshd.proxy.attempt import DETACHED_BYTES_MAX, DETACHED_S_MAX
from meshd.refusal import Reason, Refused
from tests.proxy.harness import CHAT, CHAT_STREAM, get, llm_policy, plain_policy, post, turns, until

pytestmark = pytest.mark.both_loops

CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":%b}]}\n\n'
)
USAGE = (
    b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[],'
    b'"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}\n\ndata: [DONE]\n\n'
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_before_the_reply_a_plain_call_is_cancelled(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.closed()
        hung_up.append(1)

    hung_up: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get())
    await until(lambda: up.received)
    client.close()
    await until(lambda: hung_up)
    await one.idle()
    assert one.calls[0].outcome.fault is Fault.CALLER_GONE
    assert one.calls[0].outcome.verdict is Verdict.NEUTRAL


async def test_within_the_reply_a_plain_call_is_cancelled(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        await peer.closed()
        hung_up.append(1)

    hung_up: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get())
    await client.reader.readuntil(b"half")
    client.abort()
    await until(lambda: hung_up)
    await one.idle()
    assert one.attempts[0].outcome.fault is Fault.CALLER_GONE


async def test_within_the_request_body_nothing_whole_arrives(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"half")
        came.append(await peer.closed())

    came: list[bytes] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/x", "Transfer-Encoding: chunked", method="POST") + b"4\r\nhalf\r\n")
    await until(lambda: b"half" in up.received)
    client.close()
    await until(lambda: came)
    assert b"0\r\n\r\n" not in up.received


async def test_a_metered_stream_is_read_to_its_usage(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(STREAM_HEAD + piece(CHUNK % b'{"content":"a"}'))
        await until(lambda: gone)
        peer.send(piece(CHUNK % b'{"content":"b"}') + piece(USAGE) + b"0\r\n\r\n")

    gone: list[int] = []
    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post("/llm/v1/chat/completions", CHAT_STREAM))
    await client.reader.readuntil(b'"a"')
    client.abort()
    await until(lambda: all(exchange.is_caller_gone for exchange in one.proxy.live))
    gone.append(1)
    await one.idle()
    usage = one.attempts[0].outcome.usage
    assert (usage.input_tokens, usage.output_tokens, usage.is_estimated) == (8, 2, False)


async def test_a_metered_call_is_read_to_its_usage_though_the_caller_left_before_the_reply(
    mesh: Any, upstream: Any
) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await until(lambda: gone)
        peer.reply(
            b'{"model":"m","usage":{"prompt_tokens":5,"completion_tokens":3}}', b"Content-Type: application/json"
        )

    gone: list[int] = []
    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post("/llm/v1/chat/completions", CHAT))
    await until(lambda: up.received.endswith(b"}"))
    client.close()
    await until(lambda: all(exchange.is_caller_gone for exchange in one.proxy.live))
    gone.append(1)
    await one.idle()
    assert one.attempts[0].outcome.usage.input_tokens == 5


@pytest.mark.parametrize("bound", ["bytes", "seconds"])
async def test_reading_on_is_bounded(mesh: Any, upstream: Any, bound: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(STREAM_HEAD + piece(CHUNK % b'{"content":"a"}'))
        await until(lambda: gone)
        sent = 0
        while bound == "bytes" and sent < 4 * DETACHED_BYTES_MAX:
            peer.send(piece((CHUNK % b'{"content":"b"}') * 1000))
            sent += 100_000
            await peer.writer.drain()
        await peer.closed()
        hung_up.append(sent)

    gone: list[int] = []
    hung_up: list[int] = []
    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post("/llm/v1/chat/completions", CHAT_STREAM))
    await client.reader.readuntil(b'"a"')
    client.abort()
    await until(lambda: all(exchange.is_caller_gone for exchange in one.proxy.live))
    gone.append(1)
    if bound == "seconds":
        one.expire(DETACHED_S_MAX - 1)
        assert one.proxy.live
        one.expire(2)
    await one.idle()
    assert one.attempts[0].outcome.fault is Fault.CALLER_GONE


@pytest.mark.parametrize("result", ["ticket", None, Refused(Reason.NOT_ALLOWED, "no"), ValueError("broken")])
async def test_while_a_filter_waits(mesh: Any, upstream: Any, result: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    for recorder in (one.per_call, one.per_attempt):
        gate = recorder.hold()
        client = await one.connect()
        client.send(get())
        await until(lambda asked=recorder: one.proxy.live and asked.on_admit is None)
        client.close()
        await until(lambda: all(exchange.is_caller_gone for exchange in one.proxy.live))
        gate.set_exception(result) if isinstance(result, Exception) else gate.set_result(result)
        await one.idle()
    assert up.received == b""


async def test_a_body_that_breaks_while_a_filter_waits(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    gate = one.per_call.hold()
    client = await one.connect()
    client.send(get("/up/x", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n")
    assert (await client.reply()).status == 400
    gate.set_result("ticket")
    await until(lambda: one.calls and one.calls[0].outcomes)
    assert up.received == b""
    await one.idle()


async def test_while_queued_for_a_connection(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await until(lambda: go)
        peer.reply()

    go: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", pool: {connections: 1}"))
    first, second = await one.connect(), await one.connect()
    first.send(get("/up/a"))
    await until(lambda: up.received)
    second.send(get("/up/b"))
    await until(lambda: len(one.proxy.live) == 2)
    second.close()
    await until(lambda: len(one.proxy.live) == 1)
    go.append(1)
    assert (await first.reply()).status == 200
    await turns()
    assert b"/b" not in up.received
    assert one.calls[1].outcome.is_forwarded is False


async def test_between_two_attempts(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(b"", b"Retry-After: 1", status=b"503 Busy")

    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post("/llm/v1/chat/completions", CHAT))
    await until(lambda: one.attempts and one.attempts[0].outcomes)
    client.close()
    await one.idle()
    assert len(one.attempts) == 1
    assert one.calls[0].outcome.fault is Fault.CALLER_GONE


async def test_many_at_random_moments(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
            for _ in range(30):
                peer.send(b"x" * 10_000)
                await asyncio.sleep(0)

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", pool: {connections: 5, pending: 10}"))

    async def visit(number: int) -> None:
        client = await one.connect()
        client.send(post("/up/x", b"y" * 1000 * (number % 7)) * (1 + number % 3))
        await turns(number * 3)
        client.abort() if number % 2 else client.close()

    await asyncio.gather(*(visit(number) for number in range(60)))
    await one.idle()
    await until(lambda: not one.proxy.sessions)
