"""The chain on real sockets, byte by byte: errors that say too long, open breakers, and callers that hang up.

The data plane is in this process, its clock in the test's hand; every ticket must be settled exactly once.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from meshd.call import Wait
from meshd.proxy.answer import decoded
from meshd.refusal import Reason, Refused
from tests.ports import free_port
from tests.proxy.harness import CHAT, CHAT_REPLY, Mesh, Peer, Recorder, post, turns, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call

TOO_LONG = b'{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}'
OTHER = b'{"error":{"message":"no such thing","type":"invalid_request_error","code":"nope"}}'
JSON = b"content-type: application/json"
SERVED = b"x-meshd-served-by"


def _gzip(data: bytes) -> bytes:
    """The same bytes in every process: they are in the names of tests, and workers must agree on those."""
    return gzip.compress(data, mtime=0)


def document(
    first: int, second: int, *links: str, on: str = "", more: str = "", rule: str = "retry: {attempts: 0}"
) -> str:
    after = f", on: [{on}]" if on else ""
    return (
        "upstreams:\n"
        f'  llm: {{url: "http://127.0.0.1:{first}", kind: llm, dialect: openai}}\n'
        f'  spare: {{url: "http://127.0.0.1:{second}", kind: llm, dialect: openai}}\n'
        f'  claude: {{url: "http://127.0.0.1:{second}", kind: llm, dialect: anthropic}}\n'
        f"rules:\n  - {{match: {{target: llm}}, {rule}, fallback: {{to: [{', '.join(links)}]{after}}}}}\n{more}"
    )


def script(*replies: tuple[bytes, bytes]) -> Callable[[Peer], Any]:
    """Answer requests in turn with (status line, body)."""

    async def run(peer: Peer) -> None:
        for status, body in replies:
            await peer.request()
            peer.reply(body, JSON, status=status)
            await asyncio.sleep(0)

    return run


WELL = (b"200 OK", CHAT_REPLY)
PATH = "/llm/v1/chat/completions"


async def test_an_error_that_says_too_long_is_another_models_turn(mesh: Any, upstream: Any) -> None:
    first = await upstream(script((b"400 Bad Request", TOO_LONG)))
    second = await upstream(script(WELL))
    one = await mesh(document(first.port, second.port, "{upstream: spare, model: m2}", on="context"))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED), reply.body) == (200, b"spare/m2", CHAT_REPLY)
    assert [record.outcome.status for record in one.attempts] == [400, 200]
    assert b'"model":"m2"' in second.received


@pytest.mark.parametrize("body", [OTHER, b"no json", b"", b"x" * 200_000, TOO_LONG + b" " * 200_000])
async def test_another_error_of_the_same_status_passes_as_it_is(mesh: Any, upstream: Any, body: bytes) -> None:
    first = await upstream(script((b"400 Bad Request", body)))
    one = await mesh(document(first.port, free_port(), "{reply: here}", on="context"))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.body, reply.get(SERVED)) == (400, body, None)
    assert [record.outcome.status for record in one.attempts] == [400]


def compressed(encoding: bytes, body: bytes) -> Callable[[Peer], Any]:
    async def run(peer: Peer) -> None:
        await peer.request()
        # Not whole at once: what is held must wait for its last byte.
        lines = (b"HTTP/1.1 400 Bad Request", b"content-length: %d" % len(body), b"content-encoding: " + encoding, JSON)
        peer.send(b"\r\n".join(lines) + b"\r\n\r\n" + body[:9])
        await turns()
        peer.send(body[9:])

    return run


@pytest.mark.parametrize(
    ("encoding", "body"),
    [(b"gzip", _gzip(TOO_LONG)), (b"X-GZip", _gzip(TOO_LONG)), (b"deflate", zlib.compress(TOO_LONG)),
     (b"identity", TOO_LONG), (b"gzip, identity", _gzip(TOO_LONG))],
)  # fmt: skip
async def test_a_compressed_error_is_read_too(mesh: Any, upstream: Any, encoding: bytes, body: bytes) -> None:
    first, second = await upstream(compressed(encoding, body)), await upstream(script(WELL))
    one = await mesh(document(first.port, second.port, "{upstream: spare, model: m2}", on="context"))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED), reply.body) == (200, b"spare/m2", CHAT_REPLY)


BOMB = _gzip(TOO_LONG[:-2] + b" " * 50_000_000 + b"}}")
CUT_SHORT = _gzip(TOO_LONG)[:60]


@pytest.mark.parametrize(
    ("encoding", "body"),
    [(b"gzip", _gzip(OTHER)), (b"gzip", TOO_LONG), (b"gzip", BOMB), (b"gzip", CUT_SHORT), (b"deflate", BOMB),
     (b"gzip", _gzip(TOO_LONG + b" " * 70_000)), (b"br", TOO_LONG), (b"gzip, gzip", _gzip(TOO_LONG)),
     (b"gzip", b"\x1f\x8b" + b"x" * 20)],
)  # fmt: skip
async def test_one_that_says_something_else_or_is_no_such_thing_passes_as_it_is(
    mesh: Any, upstream: Any, encoding: bytes, body: bytes
) -> None:
    first = await upstream(compressed(encoding, body))
    one = await mesh(document(first.port, free_port(), "{reply: here}", on="context"))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.body, reply.get(b"content-encoding")) == (400, body, encoding)
    assert reply.get(SERVED) is None


def test_a_bomb_is_not_decoded_whole() -> None:
    tracemalloc.start()
    try:
        assert decoded(BOMB, [(b"content-encoding", b"gzip")], 65_536) == b""
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_an_error_whose_connection_dies_is_a_failed_attempt(mesh: Any, upstream: Any) -> None:
    async def dies(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 900\r\n\r\n{")
        await asyncio.sleep(0)
        peer.close()

    first = await upstream(dies)
    one = await mesh(document(first.port, free_port(), "{reply: here}", on="context, reset"))
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED)) == (200, b"reply")


async def test_an_open_breaker_is_no_attempt_and_no_wait(mesh: Any, upstream: Any) -> None:
    second = await upstream(script(*[WELL] * 9))
    rule = "retry: {attempts: 0}, breaker: {consecutive: 2}"
    one = await mesh(document(free_port(), second.port, "{upstream: spare}", rule=rule))
    for _ in range(2):
        assert (await one.fetch(post(PATH, CHAT))).get(SERVED) == b"spare/gpt-4o-mini"
    made = len(one.attempts)
    reply = await one.fetch(post(PATH, CHAT))
    assert (reply.status, reply.get(SERVED)) == (200, b"spare/gpt-4o-mini")
    # The breaker refused before the recorder behind it was asked: only the substitute's attempt is there.
    assert len(one.attempts) == made + 1


async def test_an_exhausted_chain_tells_of_the_breaker(mesh: Any) -> None:
    rule = "retry: {attempts: 0}, breaker: {consecutive: 1}"
    more = "  - {match: {target: spare}, retry: {attempts: 0}}\n"
    one = await mesh(document(free_port(), free_port(), "{upstream: spare}", rule=rule, more=more))
    assert (await one.fetch(post(PATH, CHAT))).status == 502
    reply = await one.fetch(post(PATH, CHAT))
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"]) == (503, "meshd_circuit_open")
    assert error["message"].endswith("Tried in its place: spare/gpt-4o-mini (connect).")


@pytest.mark.parametrize(
    ("reason", "is_served"), [(Reason.OVERLOADED, True), (Reason.LOOP, False), (Reason.NOT_ALLOWED, False)]
)
async def test_a_filter_that_refuses_an_attempt_at_once_or_after_waiting(
    mesh: Any, reason: Reason, is_served: bool
) -> None:
    one: Mesh = await mesh(document(free_port(), free_port(), "{reply: here}"))

    def at_once(_: Call) -> Any:
        raise Refused(reason, "no")

    def later(_: Call) -> Any:
        async def refuse() -> None:
            raise Refused(reason, "no")

        return Wait(refuse())

    for refuse in (at_once, later):
        one.per_attempt.on_admit = refuse
        reply = await one.fetch(post(PATH, CHAT))
        assert (reply.get(SERVED) == b"reply") is is_served
        assert (reply.status == 200) is is_served
    # Before the attempts it is never asked: that is no target's failure.
    one.per_attempt.on_admit, one.per_call.on_admit = None, at_once
    assert (await one.fetch(post(PATH, CHAT))).status != 200


async def test_a_caller_that_hangs_up_while_a_program_runs(mesh: Any) -> None:
    one: Mesh = await mesh(document(free_port(), free_port(), '{command: ["sleep", "600"], timeout: 600s}'))
    client = await one.connect()
    client.send(post(PATH, CHAT))
    await until(lambda: one.proxy.heuristics._running == 1)
    client.abort()
    # At once: nobody waits for what it would write.
    await until(lambda: one.proxy.heuristics._running == 0 and not one.proxy.live)


async def test_a_drain_ends_a_program_and_its_call(mesh: Any) -> None:
    one: Mesh = await mesh(document(free_port(), free_port(), '{command: ["sleep", "600"], timeout: 600s}'))
    client = await one.connect()
    client.send(post(PATH, CHAT))
    await until(lambda: one.proxy.heuristics._running == 1)
    await one.proxy.drain(0)
    assert one.proxy.heuristics._running == 0


async def test_a_translated_answer_that_is_nonsense_is_no_answer(mesh: Any, upstream: Any) -> None:
    for body in (b"no json", b'{"type":"message"}', b"[]"):
        second = await upstream(script(*[(b"200 OK", body)] * 3))
        more = "  - {match: {target: claude}, retry: {attempts: 0}}\n"
        one = await mesh(document(free_port(), second.port, "{upstream: claude, model: c}", "{reply: here}", more=more))
        reply = await one.fetch(post(PATH, CHAT))
        assert (reply.status, reply.get(SERVED)) == (200, b"reply")


async def test_a_translated_stream_that_breaks_ends_broken(mesh: Any, upstream: Any) -> None:
    async def breaks(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        start = b'data: {"type":"message_start","message":{"id":"m","model":"c","role":"assistant"}}\n\n'
        peer.send(b"%x\r\n%b\r\n" % (len(start), start))
        await until(lambda: one.proxy.live)
        peer.close()

    second = await upstream(breaks)
    more = "  - {match: {target: claude}, retry: {attempts: 0}}\n"
    one = await mesh(document(free_port(), second.port, "{upstream: claude, model: c}", "{reply: late}", more=more))
    client = await one.connect()
    client.send(post(PATH, CHAT[:-1] + b',"stream":true}'))
    said = await client.rest()
    assert b"[DONE]" not in said
    assert b"late" not in said
    assert not said.endswith(b"0\r\n\r\n")


async def test_a_body_is_kept_for_whoever_comes_next_but_not_beyond_the_limit(mesh: Any, upstream: Any) -> None:
    async def echoes(peer: Peer) -> None:
        request = await peer.request()
        peer.reply(b"%d" % len(request.body))

    second = await upstream(echoes)
    one = await mesh(
        "limits: {request_body: 2048}\nupstreams:\n"
        f'  gone: {{url: "http://127.0.0.1:{free_port()}", kind: tool}}\n'
        f'  here: {{url: "http://127.0.0.1:{second.port}", kind: tool}}\n'
        "rules:\n  - {match: {target: gone}, retry: {attempts: 0}, fallback: {to: {upstream: here}}}\n"
    )
    assert (await one.fetch(post("/gone/x", bytes(2000)))).body == b"2000"
    assert (await one.fetch(post("/gone/x", bytes(3000)))).status == 413


async def test_what_an_attempt_took_before_it_was_refused_is_paid_back(mesh: Any) -> None:
    one: Mesh = await mesh(document(free_port(), free_port(), "{reply: here}"))
    taker = Recorder(one.attempts)
    chain = one.proxy.chain
    chain.per_attempt = (taker, *chain.per_attempt)

    def refuse(_: Call) -> Any:
        raise Refused(Reason.OVERLOADED, "no")

    one.per_attempt.on_admit = refuse
    assert (await one.fetch(post(PATH, CHAT))).get(SERVED) == b"reply"
    assert one.attempts[0].outcome.reason is Reason.OVERLOADED


async def test_what_is_one_sites_own_goes_to_no_other_and_comes_from_none(mesh: Any, upstream: Any) -> None:
    async def sets(peer: Peer) -> None:
        await peer.request()
        peer.reply(b"ok", b"set-cookie: theirs=1", b"mcp-session-id: theirs", b"x-kept: 1")

    second = await upstream(sets)
    one = await mesh(
        "upstreams:\n"
        f'  gone: {{url: "http://127.0.0.1:{free_port()}", kind: tool}}\n'
        f'  here: {{url: "http://127.0.0.1:{second.port}", kind: tool}}\n'
        "rules:\n  - {match: {target: gone}, retry: {attempts: 0}, fallback: {to: {upstream: here}}}\n"
    )
    private = (
        "private-token",
        "x-auth-token",
        "x-subscription-token",
        "mcp-session-id",
        "x-vault-token",
        "x-rapidapi-key",
    )
    kept = ("idempotency-key", "x-monkey")
    reply = await one.fetch(post("/gone/x", b"1", *(f"{name}: of-{name}" for name in (*private, *kept))))
    assert (reply.status, reply.get(SERVED), reply.get(b"x-kept")) == (200, b"here", b"1")
    assert (reply.get(b"set-cookie"), reply.get(b"mcp-session-id")) == (None, None)
    assert [name for name in private if f"of-{name}".encode() in second.received] == []
    assert [name for name in kept if f"of-{name}".encode() in second.received] == list(kept)
