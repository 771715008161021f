"""What is held back of an answer, or told in its place: streams before their first token, callers that go while one is
translated, errors that ask for a pause. The data plane is in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshd.outcome import Fault, Verdict
from tests.fallback.test_scripted import JSON, PATH, SERVED, document
from tests.ports import free_port
from tests.proxy.harness import CHAT, Peer, post, until

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = CHAT[:-1] + b',"stream":true}'
OPENING = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
TOKEN = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
DONE = b"data: [DONE]\n\n"
MESSAGE = (
    b'{"id":"m","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"hello"}],'
    b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":2}}'
)
NO_RETRY = "  - {match: {kind: llm}, retry: {attempts: 0}}\n"


def events(*pieces: bytes) -> Callable[[Peer], Any]:
    """Answer every request with one stream, which ends in order."""

    async def run(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in pieces:
                peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            peer.send(b"0\r\n\r\n")

    return run


def patient(document: str) -> str:
    """Let the first upstream's streams be held until their first token."""
    return document.replace("dialect: openai}", "dialect: openai, timeouts: {first_token: 30s}}", 1)


@pytest.mark.parametrize("pieces", [(OPENING,), (OPENING, ERROR), (ERROR,), ()])
async def test_a_stream_that_ends_before_its_first_token_is_the_next_links_turn(
    mesh: Any, upstream: Any, pieces: tuple[bytes, ...]
) -> None:
    first, second = await upstream(events(*pieces)), await upstream(events(OPENING, TOKEN, DONE))
    one = await mesh(patient(document(first.port, second.port, "{upstream: spare}", more=NO_RETRY)))
    reply = await one.fetch(post(PATH, STREAM))
    assert (reply.status, reply.get(SERVED)) == (200, b"spare/gpt-4o-mini")
    assert reply.body == OPENING + TOKEN + DONE
    assert [record.outcome.fault for record in one.attempts] == [Fault.TRUNCATED, Fault.NONE]


async def test_where_nothing_follows_the_caller_has_what_came(mesh: Any, upstream: Any) -> None:
    first = await upstream(events(OPENING, ERROR))
    one = await mesh(patient(document(first.port, free_port(), "{upstream: spare}", on="open")))
    reply = await one.fetch(post(PATH, STREAM))
    assert (reply.status, reply.body) == (200, OPENING + ERROR)
    assert [record.outcome.verdict for record in one.attempts] == [Verdict.FAILURE]


async def test_a_stream_without_a_token_that_comes_to_its_end_is_an_answer(mesh: Any, upstream: Any) -> None:
    first = await upstream(events(OPENING, DONE))
    one = await mesh(patient(document(first.port, free_port(), "{reply: here}")))
    reply = await one.fetch(post(PATH, STREAM))
    assert (reply.status, reply.get(SERVED), reply.body) == (200, None, OPENING + DONE)


async def test_a_budget_cuts_a_held_stream_as_it_cuts_any(mesh: Any, upstream: Any) -> None:
    """The first event is far beyond the cap: the stream ends well-formed, held or not."""
    much = TOKEN.replace(b"hi", b"word " * 4000)
    bodies = []
    for held in (False, True):
        first = await upstream(events(OPENING, much, DONE))
        policy = document(first.port, free_port(), "{reply: here}", rule="budget: {tokens: 5000}")
        one = await mesh(patient(policy) if held else policy)
        reply = await one.fetch(post(PATH, STREAM, "x-meshd-workflow: w"))
        assert reply.status == 200
        bodies.append(reply.body)
    assert b'"finish_reason":"length"' in bodies[0]
    assert bodies[0] == bodies[1]


async def test_a_caller_that_goes_while_an_answer_is_translated_is_no_failure(mesh: Any, upstream: Any) -> None:
    gone: list[bool] = []

    async def slow(peer: Peer) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(MESSAGE)
        peer.send(head + MESSAGE[:9])
        await until(lambda: gone)
        peer.send(MESSAGE[9:])

    second = await upstream(slow)
    one = await mesh(document(free_port(), second.port, "{upstream: claude, model: c}", more=NO_RETRY))
    client = await one.connect()
    client.send(post(PATH, CHAT))
    await until(lambda: second.peers and any(each.status for each in _attempts(one)))
    client.abort()
    await until(lambda: all(each.is_caller_gone for each in one.proxy.live))
    gone.append(True)
    await one.idle()
    outcome = one.attempts[-1].outcome
    assert (outcome.fault, outcome.verdict) == (Fault.NONE, Verdict.SUCCESS)
    assert outcome.usage.output_tokens == 2


def _attempts(one: Any) -> list[Any]:
    return [each.attempt for each in one.proxy.live if each.attempt is not None]


@pytest.mark.parametrize(
    ("said", "is_retried", "after"),
    [(b"", b"true", b"1"), (b"3", b"true", b"3"), (b"3600", b"false", None), (b"1000000000", b"false", None)],
)
async def test_an_exhausted_chain_says_for_how_long_the_first_asked_to_be_left_alone(
    mesh: Any, upstream: Any, said: bytes, is_retried: bytes, after: bytes | None
) -> None:
    async def full(peer: Peer) -> None:
        await peer.request()
        peer.reply(b"{}", JSON, b"retry-after: " + said, status=b"429 Too Many Requests")

    first = await upstream(full)
    one = await mesh(document(first.port, free_port(), "{upstream: spare}", more=NO_RETRY))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(b"x-should-retry"), reply.get(b"retry-after")) == (429, is_retried, after)
    assert reply.get(SERVED) is None


async def test_a_refusal_names_nobody_that_has_served_it(mesh: Any, upstream: Any) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    second = await upstream(silent)
    one = await mesh(document(free_port(), second.port, "{upstream: spare}"))
    client = await one.connect()
    client.send(post(PATH, CHAT, "x-meshd-deadline: 60"))
    await until(lambda: second.received)
    one.expire(61.0)
    reply = await client.reply("POST")
    assert (reply.get(b"x-meshd-reason"), reply.get(SERVED)) == (b"deadline", None)
