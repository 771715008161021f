"""A call that is made again, over real connections: carried out once, answered each time, byte for byte."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.call import Reply
from meshd.engines.port import StoreError
from meshd.outcome import Verdict
from tests.proxy.harness import CHAT, CHAT_REPLY, get, llm_policy, plain_policy, post, seeded, turns, until

pytestmark = pytest.mark.both_loops

ORDER = b'{"buy": 1}'
KEY = "Idempotency-Key: order-1"
JSON = "Content-Type: application/json"
EVENTS = b"".join(b"id: %d\ndata: word %d\n\n" % (number, number) for number in range(300))


def buy(*fields: str, body: bytes = ORDER, path: str = "/up/orders") -> bytes:
    return post(path, body, JSON, *(fields or (KEY,)))


class Shop:
    """An upstream that counts what it carries out, and answers as it is told."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.answers: list[tuple[bytes, bytes]] = []
        """Status line and body, in order; 200 and a number of its own where it is told nothing."""
        self.gate: asyncio.Event | None = None
        self.fields = (b"date: Thu, 01 Jan 2026 00:00:00 GMT", b"x-request-id: theirs", b"retry-after: 0")

    async def __call__(self, peer: Any) -> None:
        while True:
            request = await peer.request()
            self.bodies.append(request.body)
            status, body = self.answers.pop(0) if self.answers else (b"200 OK", b"order %d" % len(self.bodies))
            if self.gate is not None:
                await self.gate.wait()
            if status == b"reset":
                peer.reset()
                return
            if status == b"stream":
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 1000):
                    part = body[at : at + 1000]
                    peer.send(b"%x\r\n%b\r\n" % (len(part), part))
                peer.send(b"0\r\n\r\n")
            else:
                peer.reply(body, *self.fields, status=status)


def rules(port: int, settings: str, kind: str = "tool", more: str = "") -> str:
    document = plain_policy(port, kind=kind)
    return document + f"rules:\n  - {{name: once, match: {{}}, idempotency: {{{settings}}}{more}}}\n"


async def test_the_second_gets_the_answer_of_the_first(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    first, second = await one.fetch(buy()), await one.fetch(buy())
    await one.idle()
    third = await one.fetch(buy('idempotency-key: "order-1"'))
    assert [reply.body for reply in (first, second, third)] == [b"order 1"] * 3
    assert len(shop.bodies) == 1
    assert first.get(b"idempotent-replayed") is None
    assert second.get(b"idempotent-replayed") == third.get(b"idempotent-replayed") == b"true"
    # Of the answer: when it was made, and how its maker calls it. Of the call: its own id. Of a moment: nothing.
    assert second.get(b"date") == first.get(b"date")
    assert second.get(b"x-request-id") == b"theirs"
    assert second.get(b"x-meshd-call") not in (None, first.get(b"x-meshd-call"))
    assert (first.get(b"retry-after"), second.get(b"retry-after")) == (b"0", None)


async def test_another_key_is_another_call(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    replies = [await one.fetch(buy(f"Idempotency-Key: k{number}")) for number in range(3)]
    replies.append(await one.fetch(buy("Idempotency-Key: k0", path="/up/other")))
    assert [reply.body for reply in replies] == [b"order %d" % number for number in range(1, 5)]


async def test_a_stream_is_replayed_byte_for_byte(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers = [(b"stream", EVENTS)]
    one = await mesh(plain_policy((await upstream(shop)).port))
    first, second = await one.fetch(buy()), await one.fetch(buy())
    assert first.body == second.body == EVENTS
    assert second.get(b"content-type") == b"text/event-stream"
    assert len(shop.bodies) == 1


async def test_a_long_answer_is_kept_in_a_file_and_in_pieces(mesh: Any, upstream: Any) -> None:
    shop, body = Shop(), seeded(1, 3_000_000)
    shop.answers = [(b"stream", body)]
    one = await mesh(plain_policy((await upstream(shop)).port))
    first, second = await one.fetch(buy()), await one.fetch(buy())
    await one.idle()
    assert first.body == second.body == (await one.fetch(buy())).body == body
    assert len(shop.bodies) == 1


async def test_an_answer_that_is_too_long_is_told_of(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers = [(b"200 OK", bytes(5000))]
    one = await mesh(rules((await upstream(shop)).port, "reply: 2kB"))
    assert len((await one.fetch(buy())).body) == 5000
    again = await one.fetch(buy())
    assert (again.status, again.get(b"x-meshd-reason"), again.get(b"x-should-retry")) == (409, b"key_unknown", b"false")
    assert b"fresh key" in again.body
    assert len(shop.bodies) == 1


async def test_one_that_comes_meanwhile_joins(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.gate = asyncio.Event()
    one = await mesh(plain_policy((await upstream(shop)).port))
    calls = [asyncio.ensure_future(one.fetch(buy())) for _ in range(5)]
    await until(lambda: shop.bodies and len(one.proxy.live) == 5)
    await turns()
    shop.gate.set()
    replies = await asyncio.gather(*calls)
    assert [reply.body for reply in replies] == [b"order 1"] * 5
    assert sorted(reply.get(b"idempotent-replayed") or b"" for reply in replies) == [b"", *[b"true"] * 4]
    assert len(shop.bodies) == 1


async def test_or_is_told_so(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.gate = asyncio.Event()
    one = await mesh(rules((await upstream(shop)).port, "in_flight: refuse"))
    first = asyncio.ensure_future(one.fetch(buy()))
    await until(lambda: shop.bodies)
    second = await one.fetch(buy())
    assert (second.status, second.get(b"x-meshd-reason"), second.get(b"x-should-retry")) == (
        409, b"key_in_flight", b"true",
    )  # fmt: skip
    shop.gate.set()
    assert (await first).status == 200
    assert (await one.fetch(buy())).body == b"order 1"


async def test_the_same_key_and_another_payload(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    await one.fetch(buy())
    for other in (buy(body=b'{"buy": 2}'), buy(path="/up/orders?all=1")):
        reply = await one.fetch(other)
        assert (reply.status, reply.get(b"x-meshd-reason")) == (422, b"key_reused")
    # What says the same is the same.
    assert (await one.fetch(buy(body=b'{ "buy":1}'))).get(b"idempotent-replayed") == b"true"
    assert len(shop.bodies) == 1


@pytest.mark.parametrize(
    "fields",
    [
        ("Idempotency-Key: " + "k" * 256,),
        ("Idempotency-Key: " + "k" * 10_240,),
        ("Idempotency-Key: ",),
        ('Idempotency-Key: ""',),
        ('Idempotency-Key: "open',),
        ('Idempotency-Key: "a"b"',),
        ("Idempotency-Key: caf\xe9",),
        ("Idempotency-Key: a\tb",),
        ("Idempotency-Key: a", "Idempotency-Key: a"),
    ],
)
async def test_what_is_no_key_is_refused_and_harms_nothing(mesh: Any, upstream: Any, fields: tuple[str, ...]) -> None:
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    reply = await one.fetch(buy(*fields))
    assert (reply.status, reply.get(b"x-meshd-reason")) == (400, b"malformed")
    assert b"Idempotency-Key" in reply.body
    assert shop.bodies == []
    assert (await one.fetch(buy())).body == b"order 1"


async def test_a_key_is_asked_for_where_the_policy_says_so(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    one = await mesh(rules((await upstream(shop)).port, "required: true"))
    reply = await one.fetch(buy("X-Nothing: here"))
    assert (reply.status, reply.get(b"x-meshd-reason")) == (400, b"key_missing")
    assert (await one.fetch(get("/up/orders"))).status == 200
    assert (await one.fetch(buy())).status == 200


@pytest.mark.parametrize("status", [b"200 OK", b"201 Created", b"303 See Other", b"400 Bad Request", b"404 Not Found"])
async def test_what_would_be_said_again_is_kept(mesh: Any, upstream: Any, status: bytes) -> None:
    shop = Shop()
    shop.answers = [(status, b"said")]
    one = await mesh(plain_policy((await upstream(shop)).port))
    first, second = await one.fetch(buy()), await one.fetch(buy())
    assert (first.status, first.body) == (second.status, second.body) == (int(status[:3]), b"said")
    assert len(shop.bodies) == 1


@pytest.mark.parametrize("status", [b"401 No", b"409 Conflict", b"425 Early", b"429 Slow"])
async def test_what_was_turned_away_runs_anew(mesh: Any, upstream: Any, status: bytes) -> None:
    shop = Shop()
    shop.answers = [(status, b"no")]
    one = await mesh(plain_policy((await upstream(shop)).port))
    first, second = await one.fetch(buy()), await one.fetch(buy())
    assert (first.status, second.body) == (int(status[:3]), b"order 2")
    assert len(shop.bodies) == 2


@pytest.mark.parametrize("status", [b"500 Oh", b"503 Oh", b"reset"])
@pytest.mark.parametrize("kind", ["tool", "agent", "host"])
async def test_what_may_have_been_carried_out_is_never_run_again(
    mesh: Any, upstream: Any, kind: str, status: bytes
) -> None:
    shop = Shop()
    shop.answers = [(status, b"oh")]
    one = await mesh(rules((await upstream(shop)).port, "", kind, ", retry: {attempts: 2, on: [5xx, reset]}"))
    first = await one.fetch(buy())
    assert first.status == (502 if status == b"reset" else int(status[:3]))
    for _ in range(2):
        again = await one.fetch(buy())
        assert (again.status, again.get(b"x-meshd-reason")) == (409, b"key_unknown")
        assert again.get(b"x-should-retry") == b"false"
        await one.idle()
    assert len(shop.bodies) == 1
    assert (await one.fetch(buy("Idempotency-Key: fresh"))).body == b"order 2"


async def test_a_completion_that_failed_runs_anew(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers = [(b"500 Oh", b"{}"), (b"200 OK", CHAT_REPLY)]
    one = await mesh(llm_policy((await upstream(shop)).port) + "rules:\n  - {match: {}, retry: {attempts: 0}}\n")
    ask = post("/llm/v1/chat/completions", CHAT, JSON, KEY)
    assert [(await one.fetch(ask)).status for _ in range(3)] == [500, 200, 200]
    assert len(shop.bodies) == 2


async def test_a_refusal_of_ours_is_no_answer(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    up = await upstream(shop)
    one = await mesh(plain_policy(up.port))
    from meshd.refusal import Reason, Refused

    def refuse(call: Any) -> None:
        one.per_attempt.on_admit = None
        raise Refused(Reason.NOT_ALLOWED, "not now")

    one.per_attempt.on_admit = refuse
    assert (await one.fetch(buy())).status == 403
    assert (await one.fetch(buy())).body == b"order 1"


async def test_an_upstream_that_was_not_reached_leaves_no_claim(mesh: Any, upstream: Any) -> None:
    up = await upstream(Shop())
    port = up.port
    await up.close()
    one = await mesh(plain_policy(port) + "rules:\n  - {match: {}, retry: {attempts: 0}}\n")
    assert (await one.fetch(buy())).status == 502
    await up.start()
    assert (await one.fetch(buy())).body == b"order 1"


# ---------------------------------------------------------------------- callers that hang up


async def test_a_caller_that_hangs_up_does_not_end_what_it_began(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.gate = asyncio.Event()
    one = await mesh(plain_policy((await upstream(shop)).port))
    client = await one.connect()
    client.send(buy())
    await until(lambda: shop.bodies)
    client.abort()
    await turns()
    shop.gate.set()
    await one.idle()
    assert (await one.fetch(buy())).body == b"order 1"
    assert len(shop.bodies) == 1


async def test_in_the_midst_of_a_stream_too(mesh: Any, upstream: Any) -> None:
    gate = asyncio.Event()
    runs: list[int] = []

    async def script(peer: Any) -> None:
        await peer.request()
        runs.append(1)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 14\r\n\r\ndata: 1\n")
        await gate.wait()
        peer.send(b"\nlast\n")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(buy())
    await client.reader.readuntil(b"data: 1\n")
    client.abort()
    await turns()
    gate.set()
    await one.idle()
    assert (await one.fetch(buy())).body == b"data: 1\n\nlast\n"
    assert runs == [1]


async def test_one_that_waits_and_hangs_up_leaves(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.gate = asyncio.Event()
    one = await mesh(plain_policy((await upstream(shop)).port))
    first = asyncio.ensure_future(one.fetch(buy()))
    await until(lambda: shop.bodies)
    second = await one.connect()
    second.send(buy())
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    second.abort()
    await until(lambda: len(one.proxy.live) == 1)
    shop.gate.set()
    assert (await first).body == b"order 1"


async def test_who_waits_takes_over_where_the_first_was_never_sent(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    gate = one.per_call.hold()
    first = await one.connect()
    first.send(buy())
    await until(lambda: one.per_call.on_admit is None)
    second = asyncio.ensure_future(one.fetch(buy()))
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    first.abort()
    await turns()
    gate.set_result(None)
    assert (await second).body == b"order 1"
    assert len(shop.bodies) == 1


# ---------------------------------------------------------------------- what official clients send


def ask(count: int, body: bytes = CHAT) -> bytes:
    return post("/llm/v1/chat/completions", body, JSON, f"X-Stainless-Retry-Count: {count}", "Authorization: Bearer k")


async def orphaned(one: Any, shop: Shop) -> None:
    client = await one.connect()
    count = len(shop.bodies)
    client.send(ask(0))
    await until(lambda: len(shop.bodies) > count)
    client.abort()
    await turns()


async def test_a_retry_joins_the_attempt_that_its_client_left(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers, shop.gate = [(b"200 OK", CHAT_REPLY)], asyncio.Event()
    one = await mesh(llm_policy((await upstream(shop)).port))
    await orphaned(one, shop)
    retry = asyncio.ensure_future(one.fetch(ask(1)))
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    shop.gate.set()
    reply = await retry
    assert (reply.body, reply.get(b"idempotent-replayed")) == (CHAT_REPLY, b"true")
    assert len(shop.bodies) == 1


async def test_or_gets_its_answer_when_it_was_there_before(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers, shop.gate = [(b"200 OK", CHAT_REPLY)] * 2, asyncio.Event()
    one = await mesh(llm_policy((await upstream(shop)).port))
    await orphaned(one, shop)
    shop.gate.set()
    await one.idle()
    assert (await one.fetch(ask(1))).get(b"idempotent-replayed") == b"true"
    # It is taken: the next retry is of another attempt.
    assert (await one.fetch(ask(1))).get(b"idempotent-replayed") is None
    assert len(shop.bodies) == 2


async def test_a_retry_that_times_out_too_leaves_the_attempt_to_the_next(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers, shop.gate = [(b"200 OK", CHAT_REPLY)], asyncio.Event()
    one = await mesh(llm_policy((await upstream(shop)).port))
    await orphaned(one, shop)
    client = await one.connect()
    client.send(ask(1))
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    client.abort()
    await until(lambda: len(one.proxy.live) == 1)
    retry = asyncio.ensure_future(one.fetch(ask(2)))
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    shop.gate.set()
    assert (await retry).body == CHAT_REPLY
    assert len(shop.bodies) == 1


async def test_honest_samples_are_never_joined(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers, shop.gate = [(b"200 OK", CHAT_REPLY)] * 4, asyncio.Event()
    one = await mesh(llm_policy((await upstream(shop)).port))
    samples = [asyncio.ensure_future(one.fetch(ask(0))) for _ in range(2)]
    await until(lambda: len(shop.bodies) == 2)
    # A retry of an attempt that failed elsewhere: the samples' callers still wait for their own.
    retry = asyncio.ensure_future(one.fetch(ask(1)))
    await until(lambda: len(shop.bodies) == 3)
    shop.gate.set()
    for reply in await asyncio.gather(*samples, retry):
        assert reply.get(b"idempotent-replayed") is None
    # And afterwards nothing is left to be joined.
    assert (await one.fetch(ask(1))).get(b"idempotent-replayed") is None
    assert len(shop.bodies) == 4


async def test_a_retry_whose_attempt_failed_runs_anew(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    shop.answers, shop.gate = [(b"500 Oh", b"{}"), (b"200 OK", CHAT_REPLY)], asyncio.Event()
    one = await mesh(llm_policy((await upstream(shop)).port))
    await orphaned(one, shop)
    retry = asyncio.ensure_future(one.fetch(ask(1)))
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    shop.gate.set()
    reply = await retry
    assert (reply.status, reply.get(b"idempotent-replayed")) == (200, None)


@pytest.mark.parametrize("other", [b"Authorization: Bearer other", b"X-Stainless-Retry-Count: x"])
async def test_a_retry_with_another_key_joins_nothing(mesh: Any, upstream: Any, other: bytes) -> None:
    shop = Shop()
    shop.answers, shop.gate = [(b"200 OK", CHAT_REPLY)] * 2, asyncio.Event()
    one = await mesh(llm_policy((await upstream(shop)).port))
    await orphaned(one, shop)
    name = other.partition(b":")[0]
    lines = [other if line.startswith(name) else line for line in ask(1).split(b"\r\n")]
    retry = asyncio.ensure_future(one.fetch(b"\r\n".join(lines)))
    await until(lambda: len(shop.bodies) == 2)
    shop.gate.set()
    assert (await retry).get(b"idempotent-replayed") is None


# ---------------------------------------------------------------------- the store


@pytest.mark.parametrize(("settings", "status", "runs"), [("", 503, 0), ("on_store_error: pass", 200, 2)])
async def test_a_store_that_is_away(mesh: Any, upstream: Any, settings: str, status: int, runs: int) -> None:
    shop = Shop()
    one = await mesh(rules((await upstream(shop)).port, settings))
    store = book_of(one)._shelf.store
    store.fault = StoreError("gone fishing")
    for _ in range(2):
        reply = await one.fetch(buy())
        assert reply.status == status
        await one.idle()
    assert len(shop.bodies) == runs
    if not runs:
        assert reply.get(b"x-meshd-reason") == b"store_unavailable"
        assert b"gone fishing" in reply.body
    # Without a key nothing is asked of it.
    assert (await one.fetch(buy("X-Nothing: here"))).status == 200
    store.fault = None
    assert (await one.fetch(buy("Idempotency-Key: k2"))).status == 200


def book_of(one: Any) -> Any:
    return next(each for each in one.proxy.chain.per_call if each.name == "idempotency").book


async def test_a_replay_is_no_turn_and_costs_nothing(mesh: Any, upstream: Any) -> None:
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    await one.fetch(buy())
    assert (len(one.calls), len(one.attempts)) == (1, 1)
    await one.fetch(buy())
    # The filters behind Idempotency were not asked.
    assert (len(one.calls), len(one.attempts)) == (1, 1)


async def test_a_304_is_replayed_without_a_length(mesh: Any, upstream: Any) -> None:
    async def shop(peer: Any) -> None:
        await peer.request()
        peer.send(b'HTTP/1.1 304 Not Modified\r\netag: "a"\r\n\r\n')

    one = await mesh(plain_policy((await upstream(shop)).port))
    first = await one.fetch(buy())
    await one.idle()
    second = await one.fetch(buy())
    assert (second.status, second.get(b"idempotent-replayed")) == (304, b"true")
    assert first.get(b"content-length") is second.get(b"content-length") is None


async def test_a_replay_says_nothing_of_an_upstream_that_was_not_asked(mesh: Any, upstream: Any) -> None:
    one = await mesh(plain_policy((await upstream(Shop())).port))
    # As Forwarding does where another sidecar was first: the breaker's permit is out, and nothing is sent.
    one.per_attempt.on_admit = lambda call: Reply(200, [], b"theirs")
    assert (await one.fetch(buy())).body == b"theirs"
    await one.idle()
    assert one.calls[0].outcome.verdict is Verdict.NEUTRAL
    assert not one.calls[0].outcome.is_forwarded
