"""What the wire sees of a call that waits for people: signs of life, one head, and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.call import Wait
from meshd.outcome import Fault
from meshd.refusal import Reason, Refused
from tests.proxy.harness import CHAT, CHAT_STREAM, get, llm_policy, plain_policy, post, turns, until

pytestmark = pytest.mark.both_loops

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting for approval\n\n"
PATH = "/llm/v1/chat/completions"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def stream(peer: Any) -> None:
    while True:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        peer.send(chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")


async def at_the_gate(one: Any) -> None:
    await until(lambda: one.proxy.live and one.per_call.on_admit is None)
    await turns()


async def test_one_head_then_comments_then_the_stream(mesh: Any, upstream: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    client = await one.connect()
    client.send(post(PATH, CHAT_STREAM))
    await at_the_gate(one)
    one.expire(2.9)
    await turns()
    assert not client.reader._buffer
    for ahead_s in (0.2, 5.0, 5.1, 10.1):
        one.expire(ahead_s)
    gate.set_result(None)
    reply = await client.reply("POST")
    assert reply.status == 200
    assert reply.get(b"content-type") == b"text/event-stream"
    assert reply.get(b"x-meshd-call")
    assert reply.body == COMMENT * 3 + EVENT + DONE
    # The connection goes on.
    client.send(post(PATH, CHAT_STREAM))
    assert (await client.reply("POST")).body == EVENT + DONE
    await one.idle()
    assert one.attempts[0].outcome.is_answered


async def test_over_http2(mesh: Any, upstream: Any, h2_client: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    client = await h2_client(one)
    doing = asyncio.ensure_future(client.ask(PATH, method="POST", body=CHAT_STREAM))
    await at_the_gate(one)
    one.expire(3.1)
    gate.set_exception(Refused(Reason.APPROVAL_DENIED, "no"))
    reply = await doing
    assert reply.status == 200
    assert reply.body.startswith(COMMENT + b'data: {"error":')
    assert b"meshd_approval_denied" in reply.body


async def test_what_does_not_stream_is_shown_nothing(mesh: Any, upstream: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    client = await one.connect()
    client.send(post(PATH, CHAT))
    await at_the_gate(one)
    for _ in range(5):
        one.expire(11)
        await turns()
    assert not client.reader._buffer
    gate.set_exception(Refused(Reason.APPROVAL_PENDING, "wait"))
    assert (await client.reply("POST")).status == 428


async def test_a_caller_that_hangs_up_ends_the_wait(mesh: Any, upstream: Any) -> None:
    up = await upstream(stream)
    one = await mesh(llm_policy(up.port))
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    one.per_call.on_admit = lambda call: Wait(forever(), is_hold=True)
    for ahead_s in (0.0, 4.0):
        client = await one.connect()
        client.send(post(PATH, CHAT_STREAM))
        await until(lambda: one.proxy.live)
        await turns()
        one.expire(ahead_s)
        client.abort()
        await one.idle()
        await turns()
        assert not one.proxy._tasks
    assert ended == ["cancelled"] * 2
    assert not up.received


async def test_a_wait_that_ends_with_its_caller_is_no_refusal(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(stream)).port))
    gate = one.per_attempt.hold(is_hold=True)
    client = await one.connect()
    client.send(get())
    await until(lambda: one.proxy.live and one.per_attempt.on_admit is None)
    await turns()
    client.abort()
    await one.idle()
    assert gate.cancelled()
    assert one.calls[0].outcome.fault is Fault.CALLER_GONE
    assert one.calls[0].outcome.reason is None


@pytest.mark.uncompiled
async def test_a_hold_that_never_began_ends_too(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(stream)).port))
    begun: list[int] = []

    async def wait() -> None:
        begun.append(1)

    wait_for, proxy = one.proxy.wait, one.proxy

    def cancelled(*arguments: Any) -> Any:
        task = wait_for(*arguments)
        task.cancel()
        return task

    proxy.wait = cancelled
    one.per_call.on_admit = lambda call: Wait(wait(), is_hold=True)
    reply = await one.fetch(get())
    assert (reply.status, reply.get(b"x-meshd-reason")) == (503, b"draining")
    assert not begun
    await one.idle()


@pytest.mark.parametrize("is_shown", [False, True])
async def test_a_drain_ends_holds_at_once(mesh: Any, upstream: Any, is_shown: bool) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    client = await one.connect()
    client.send(post(PATH, CHAT_STREAM))
    await at_the_gate(one)
    if is_shown:
        one.expire(4)
    one.stop_listening()
    # It does not take the minute that it may.
    assert await one.proxy.drain(60) is True
    reply = await client.reply("POST")
    if is_shown:
        assert reply.status == 200
        assert b"meshd_draining" in reply.body
    else:
        assert (reply.status, reply.get(b"x-meshd-reason")) == (503, b"draining")
    assert gate.cancelled()


async def test_nobody_is_held_during_a_drain(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await until(lambda: go)
        peer.reply(b"done")

    go: list[int] = []
    one = await mesh(plain_policy((await upstream(script)).port))
    first, second = await one.connect(), await one.connect()
    first.send(get())
    second.send(b"POST /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n")
    await until(lambda: one.proxy.live)
    draining = asyncio.ensure_future(one.proxy.drain(60))
    await turns()
    gate = one.per_call.hold(is_hold=True)
    second.send(b"\r\nok")
    assert (await second.reply("POST")).get(b"x-meshd-reason") == b"draining"
    assert not gate.done()
    go.append(1)
    assert (await first.reply()).body == b"done"
    assert await draining is True


async def test_a_stream_that_breaks_behind_the_comments_is_broken(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        peer.send(chunk(EVENT))
        await until(lambda: go)
        peer.abort()

    go: list[int] = []
    one = await mesh(llm_policy((await upstream(script)).port))
    gate = one.per_call.hold(is_hold=True)
    client = await one.connect()
    client.send(post(PATH, CHAT_STREAM))
    await at_the_gate(one)
    one.expire(4)
    gate.set_result(None)
    await client.reader.readuntil(EVENT)
    go.append(1)
    rest = await client.rest()
    assert b"0\r\n\r\n" not in rest


async def test_signs_of_life_end_with_the_hold(mesh: Any, upstream: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    later = one.per_attempt.hold()
    client = await one.connect()
    client.send(post(PATH, CHAT_STREAM))
    await at_the_gate(one)
    # Decided before the first sign. What is waited for then is a rule of ours, which may still refuse with a status.
    gate.set_result(None)
    await until(lambda: one.per_attempt.on_admit is None)
    await turns()
    one.expire(30)
    later.set_exception(Refused(Reason.BUDGET_EXHAUSTED, "no"))
    assert (await client.reply("POST")).status == 402


KEY = "Idempotency-Key: order-1"


async def joined(one: Any, client: Any) -> None:
    """Let a duplicate arrive that waits for the call before it."""
    count = len(one.proxy.live)
    client.send(post(PATH, CHAT_STREAM, KEY))
    await until(lambda: len(one.proxy.live) > count)
    await turns()


async def test_who_waits_for_one_that_is_held_is_shown_signs_of_life_too(mesh: Any, upstream: Any) -> None:
    up = await upstream(stream)
    one = await mesh(llm_policy(up.port))
    gate = one.per_call.hold(is_hold=True)
    first, second = await one.connect(), await one.connect()
    first.send(post(PATH, CHAT_STREAM, KEY))
    await at_the_gate(one)
    await joined(one, second)
    one.expire(2.9)
    await turns()
    assert not second.reader._buffer
    for ahead_s in (0.2, 5.0, 5.1, 10.1):
        one.expire(ahead_s)
    await second.reader.readuntil(b"\r\n\r\n")
    await second.reader.readuntil(chunk(COMMENT))
    gate.set_result(None)
    assert (await first.reply("POST")).body == COMMENT * 3 + EVENT + DONE
    # It was told of the three, and then given the same stream.
    rest = await second.reader.readuntil(b"0\r\n\r\n")
    assert rest == chunk(COMMENT) * 2 + chunk(EVENT + DONE) + b"0\r\n\r\n"
    assert bytes(up.received).count(b"POST") == 1


async def test_and_in_the_words_of_a_refusal_when_that_is_what_comes(mesh: Any, upstream: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    first, second = await one.connect(), await one.connect()
    first.send(post(PATH, CHAT_STREAM, KEY))
    await at_the_gate(one)
    await joined(one, second)
    one.expire(3.1)
    again = one.per_call.hold(is_hold=True)
    gate.set_exception(Refused(Reason.APPROVAL_DENIED, "no"))
    assert b"meshd_approval_denied" in (await first.reply("POST")).body
    # A refusal is no answer: it asks for itself, within the stream that it has.
    await until(lambda: one.per_call.on_admit is None)
    await turns()
    one.expire(10.1)
    again.set_exception(Refused(Reason.APPROVAL_DENIED, "no again"))
    reply = await second.reply("POST")
    assert reply.body.startswith(COMMENT * 2 + b'data: {"error":')
    assert b"no again" in reply.body


async def test_who_waits_for_one_that_no_person_holds_is_shown_nothing(mesh: Any, upstream: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold()
    first, second = await one.connect(), await one.connect()
    first.send(post(PATH, CHAT_STREAM, KEY))
    await at_the_gate(one)
    await joined(one, second)
    for _ in range(3):
        one.expire(5)
        await turns()
    assert not second.reader._buffer
    gate.set_result(None)
    assert (await first.reply("POST")).body == EVENT + DONE
    assert (await second.reply("POST")).body == EVENT + DONE


async def test_signs_begin_only_while_the_other_is_held(mesh: Any, upstream: Any) -> None:
    one = await mesh(llm_policy((await upstream(stream)).port))
    gate = one.per_call.hold(is_hold=True)
    later = one.per_attempt.hold()
    first, second = await one.connect(), await one.connect()
    first.send(post(PATH, CHAT_STREAM, KEY))
    await at_the_gate(one)
    await joined(one, second)
    gate.set_result(None)
    await until(lambda: one.per_attempt.on_admit is None)
    await turns()
    one.expire(30)
    await turns()
    assert not second.reader._buffer
    later.set_result(None)
    assert (await second.reply("POST")).body == EVENT + DONE
    await first.reply("POST")
