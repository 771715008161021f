"""A credential that has no quota or no money left is not tried again: the chain follows at once."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from meshd.dialects.unpaid import is_unpaid
from meshd.outcome import Verdict
from tests.fallback.test_scripted import JSON, PATH, SERVED, WELL, document, script
from tests.ports import free_port
from tests.proxy.harness import CHAT, CHAT_REPLY, Mesh, Peer, post, turns

if TYPE_CHECKING:
    from collections.abc import Callable

UNPAID = b'{"error":{"message":"quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}'
RATE = b'{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
TOO_MANY = b"429 Too Many Requests"
TWICE = "retry: {attempts: 2, backoff: 1ms}"
NEVER_READ = [
    RATE, b"", b"no json", b"[]", b'{"error":null}', b'{"error":"insufficient_quota"}', b'{"error":{"code":[]}}',
    b'{"error":{"code":429,"type":{}}}', b"\xff\xfe", b'{"error":' * 5000, UNPAID[:-9], UNPAID + b" " * 70_000,
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "says_so"),
    [
        (UNPAID, True),
        (UNPAID.replace(b'"code":"insufficient_quota"', b'"code":null'), True),  # as OpenAI once said it
        (b'{"error":{"code":"billing_not_active","type":"billing_not_active"}}', True),
        (b'{"type":"error","error":{"type":"billing_error","message":"pay"}}', True),
        *[(body, False) for body in NEVER_READ[:-1]],
    ],
)
def test_what_says_so(body: bytes, says_so: bool) -> None:
    assert is_unpaid(body) is says_so


async def test_it_is_not_tried_again_and_its_caller_has_the_upstreams_words(mesh: Any, upstream: Any) -> None:
    first = await upstream(script((TOO_MANY, UNPAID), WELL))
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", on="5xx", rule=TWICE))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.body) == (429, UNPAID)
    assert [(one.outcome.status, one.outcome.verdict) for one in one.attempts] == [(429, Verdict.BACKPRESSURE)]


async def test_the_chain_follows_at_once(mesh: Any, upstream: Any) -> None:
    first, second = await upstream(script((TOO_MANY, UNPAID), WELL)), await upstream(script(WELL))
    one: Mesh = await mesh(document(first.port, second.port, "{upstream: spare, model: m2}", rule=TWICE))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED), reply.body) == (200, b"spare/m2", CHAT_REPLY)
    assert [record.outcome.status for record in one.attempts] == [429, 200]


def in_turn(*answers: Callable[[Peer], Any]) -> Callable[[Peer], Any]:
    """Answer requests in turn, over whichever connection they come."""
    left = list(answers)

    async def run(peer: Peer) -> None:
        while left:
            await peer.request()
            await left.pop(0)(peer)

    return run


def said(status: bytes, body: bytes, *fields: bytes) -> Callable[[Peer], Any]:
    async def run(peer: Peer) -> None:
        peer.reply(body, JSON, *fields, status=status)

    return run


OK = said(*WELL)


@pytest.mark.parametrize("body", NEVER_READ)
async def test_every_other_429_is_tried_again_as_before(mesh: Any, upstream: Any, body: bytes) -> None:
    first = await upstream(in_turn(said(TOO_MANY, body), OK))
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", rule=TWICE))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.body, reply.get(SERVED)) == (200, CHAT_REPLY, None)
    assert [record.outcome.status for record in one.attempts] == [429, 200]


def slowly(encoding: bytes, body: bytes) -> Callable[[Peer], Any]:
    """Answer 429 with a body that is not whole at once."""

    async def run(peer: Peer) -> None:
        fields = b"content-length: %d\r\ncontent-encoding: %s\r\n%s" % (len(body), encoding, JSON)
        peer.send(b"HTTP/1.1 " + TOO_MANY + b"\r\n" + fields + b"\r\n\r\n" + body[:9])
        await turns()
        peer.send(body[9:])

    return run


@pytest.mark.parametrize(("encoding", "is_read"), [(b"identity", True), (b"gzip", True), (b"br", False)])
async def test_it_is_read_compressed_and_in_pieces(mesh: Any, upstream: Any, encoding: bytes, is_read: bool) -> None:
    body = gzip.compress(UNPAID, mtime=0) if encoding == b"gzip" else UNPAID
    first = await upstream(in_turn(slowly(encoding, body), OK))
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", rule=TWICE))
    reply = await one.fetch(post(PATH, CHAT))
    assert [record.outcome.status for record in one.attempts] == ([429] if is_read else [429, 200])
    assert reply.get(SERVED) == (b"reply" if is_read else None)


async def test_a_connection_that_breaks_in_the_error_is_tried_again(mesh: Any, upstream: Any) -> None:
    async def breaks(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 " + TOO_MANY + b"\r\ncontent-length: 90\r\n" + JSON + b"\r\n\r\n" + UNPAID[:40])
        await turns()
        peer.writer.close()

    first = await upstream(in_turn(breaks, OK))
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", rule=TWICE))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.body) == (200, CHAT_REPLY)


async def test_payment_required_is_the_chains_turn_but_for_another_sidecars_budget(mesh: Any, upstream: Any) -> None:
    paid = b"402 Payment Required"
    first = await upstream(in_turn(said(paid, UNPAID), said(paid, UNPAID, b"x-meshd-decision: refuse")))
    second = await upstream(script(WELL))
    one: Mesh = await mesh(document(first.port, second.port, "{upstream: spare, model: m2}", rule=TWICE))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED)) == (200, b"spare/m2")
    assert [record.outcome.verdict for record in one.attempts] == [Verdict.NEUTRAL, Verdict.SUCCESS]
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED)) == (402, None)


async def test_the_official_client_hears_it_after_one_attempt(mesh: Any, upstream: Any) -> None:
    asked = 0

    async def refuses(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            peer.reply(UNPAID, JSON, status=TOO_MANY)
            await asyncio.sleep(0)

    first = await upstream(refuses)
    one: Mesh = await mesh(document(first.port, free_port(), "{reply: here}", on="5xx", rule=TWICE))
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{one.port}/llm/v1", api_key="sk", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**json.loads(CHAT))
    assert (caught.value.code, asked) == ("insufficient_quota", 1)
    await client.close()
