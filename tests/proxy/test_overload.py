"""Overload over real sockets: what waits, what is refused, and what reaches an upstream that says that it is full."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from meshd.outcome import Fault, Verdict
from tests.proxy.harness import CHAT, CHAT_REPLY, get, llm_policy, plain_policy, post, turns, until

NO_RETRY = "rules: [{match: {}, retry: {attempts: 0}}]\n"
CHAT_PATH = "/llm/v1/chat/completions"


def limited(more: str) -> str:
    return f"rules: [{{match: {{}}, retry: {{attempts: 0}}, concurrency: {{{more}}}}}]\n"


class Server:
    """An upstream whose answers a test gives, one by one."""

    def __init__(self, *first: tuple[bytes, tuple[bytes, ...]]) -> None:
        self.first = list(first)
        self.asked = 0
        self.gate: asyncio.Event = asyncio.Event()
        self.gate.set()

    async def __call__(self, peer: Any) -> None:
        while True:
            await peer.request()
            self.asked += 1
            status, fields = self.first.pop(0) if self.first else (b"200 OK", ())
            await self.gate.wait()
            peer.reply(b"ok", *fields, status=status)


FULL = b"429 Too Many Requests"


def breaker(one: Any) -> Any:
    return next(each for each in one.proxy.chain.per_attempt if each.name == "breaker")


def queued(one: Any) -> int:
    return sum(view.queued for view in breaker(one).snapshot())


@pytest.mark.parametrize("value", [b"30", b"1000000000", b"9" * 300, b"Fri, 31 Dec 9999 23:59:59 GMT"])
@pytest.mark.parametrize("status", [FULL, b"503 Service Unavailable"])
async def test_an_upstream_that_asks_for_a_pause_gets_it(mesh: Any, upstream: Any, value: bytes, status: bytes) -> None:
    server = Server((status, (b"retry-after: " + value,)))
    up = await upstream(server)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    first = await one.fetch(get())
    # Its own words pass as they are.
    assert (first.status, first.get(b"retry-after")) == (int(status[:3]), value)
    second = await one.fetch(get())
    assert (second.status, second.get(b"x-meshd-reason")) == (int(status[:3]), b"overloaded")
    assert (second.get(b"x-should-retry"), second.get(b"retry-after")) == (b"false", None)
    assert server.asked == 1


@pytest.mark.parametrize("value", [b"-5", b"soon", b"0", b"", b"1e9", b"nan", b"Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_pause_that_is_none_holds_nobody(mesh: Any, upstream: Any, value: bytes) -> None:
    server = Server((FULL, (b"retry-after: " + value,)))
    up = await upstream(server)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    assert [(await one.fetch(get())).status for _ in range(2)] == [429, 200]
    assert server.asked == 2


async def test_callers_wait_through_a_short_pause(mesh: Any, upstream: Any) -> None:
    server = Server((FULL, (b"retry-after-ms: 60",)))
    up = await upstream(server)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    assert (await one.fetch(get())).status == 429
    replies = await asyncio.gather(*[one.fetch(get()) for _ in range(5)])
    assert [reply.status for reply in replies] == [200] * 5
    assert queued(one) == 0


async def test_a_retry_waits_as_long_as_it_is_asked_to(mesh: Any, upstream: Any) -> None:
    server = Server((FULL, (b"retry-after-ms: 40",)))
    up = await upstream(server)
    one = await mesh(llm_policy(up.port))
    reply = await one.fetch(post(CHAT_PATH, CHAT))
    assert reply.status == 200
    assert server.asked == 2


async def busy(mesh: Any, upstream: Any, limits: str) -> tuple[Server, Any, Any]:
    """Return a server that is at work on one call until its gate opens, its data plane, and three callers: the first
    made that call."""
    server = Server()
    server.gate.clear()
    up = await upstream(server)
    one = await mesh(plain_policy(up.port) + limited(limits))
    clients = [await one.connect() for _ in range(3)]
    clients[0].send(get())
    await until(lambda: server.asked == 1)
    return server, one, clients


async def test_one_waits_and_one_too_many_is_refused(mesh: Any, upstream: Any) -> None:
    server, one, clients = await busy(mesh, upstream, "max: 1, queue: 1")
    clients[1].send(get())
    await until(lambda: queued(one) == 1)
    refused = await clients[2].ask(get())
    assert (refused.status, refused.get(b"x-meshd-reason")) == (503, b"overloaded")
    assert refused.get(b"x-should-retry") == b"true"
    assert 1 <= int(refused.get(b"retry-after")) <= 5
    assert server.asked == 1
    server.gate.set()
    assert (await clients[0].reply()).status == 200
    assert (await clients[1].reply()).status == 200
    assert server.asked == 2
    assert breaker(one).shed == {("up", "queue_full"): 1}


async def test_one_that_hangs_up_while_it_waits_never_reaches_the_upstream(mesh: Any, upstream: Any) -> None:
    server, one, clients = await busy(mesh, upstream, "max: 1")
    for client in clients[1:]:
        client.send(get())
    await until(lambda: queued(one) == 2)
    clients[1].abort()
    await turns()
    server.gate.set()
    assert (await clients[2].reply()).status == 200
    await one.idle()
    assert server.asked == 2
    assert [view.in_flight for view in breaker(one).snapshot()] == [0]


async def test_one_that_hangs_up_makes_room_for_another_to_wait_at_once(mesh: Any, upstream: Any) -> None:
    server, one, clients = await busy(mesh, upstream, "max: 1, queue: 1")
    clients[1].send(get("/up/gone"))
    await until(lambda: queued(one) == 1)
    clients[1].abort()
    # Nothing else moves: the first is still under way.
    await until(lambda: queued(one) == 0)
    await until(lambda: len(one.proxy.live) == 1)
    clients[2].send(get("/up/next"))
    await until(lambda: queued(one) == 1)
    server.gate.set()
    assert (await clients[2].reply()).status == 200
    assert breaker(one).shed == {}
    assert [view.in_flight for view in breaker(one).snapshot()] in ([0], [1])


async def test_a_body_that_streams_waits_with_its_call(mesh: Any, upstream: Any) -> None:
    bodies: list[bytes] = []
    gate = asyncio.Event()

    async def script(peer: Any) -> None:
        while True:
            bodies.append((await peer.request()).body)
            await gate.wait()
            peer.reply()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + limited("max: 1"))
    first, second = await one.connect(), await one.connect()
    first.send(get())
    await until(lambda: bodies)
    second.send(post("/up/x", b"a" * 200_000))
    await until(lambda: queued(one) == 1)
    gate.set()
    assert (await second.reply("POST")).status == 200
    assert bodies == [b"", b"a" * 200_000]


async def test_a_drain_ends_what_waits(mesh: Any, upstream: Any) -> None:
    _, one, (_, second, _) = await busy(mesh, upstream, "max: 1")
    second.send(get())
    await until(lambda: queued(one) == 1)
    await one.proxy.drain(0)
    assert (await second.reply()).get(b"x-meshd-reason") == b"draining"
    assert queued(one) == 0


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(mesh: Any, upstream: Any) -> None:
    server = Server()
    up = await upstream(server)
    one = await mesh(plain_policy(up.port) + limited("max: 1, queue: 5"))
    server.gate.clear()
    blocker = await one.connect()
    blocker.send(get())
    await until(lambda: server.asked == 1)
    (circuit,) = breaker(one)._circuits.values()
    # What attempts take here, as if many had ended while others waited.
    for _ in range(60):
        circuit.throttle._time(8.0)
    reply = await one.fetch(get("/up/x", "x-meshd-deadline: 9"))
    assert (reply.status, reply.get(b"x-meshd-reason"), reply.get(b"x-should-retry")) == (503, b"overloaded", b"false")
    assert breaker(one).shed == {("up", "deadline"): 1}
    patient = await one.connect()
    patient.send(get("/up/x", "x-meshd-deadline: 30"))
    await until(lambda: queued(one) == 1)
    server.gate.set()
    assert (await patient.reply()).status == 200


async def test_a_burst_at_a_full_upstream_is_cut_once_and_the_rest_wait(mesh: Any, upstream: Any) -> None:
    """Ten at once at an upstream that takes four: no caller after the first burst is told 429."""
    under_way = most = 0

    async def script(peer: Any) -> None:
        nonlocal under_way, most
        while True:
            await peer.request()
            if under_way >= 4:
                peer.reply(status=FULL)
                continue
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.002)
            under_way -= 1
            peer.reply()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + limited("max: 64"))
    statuses: list[int] = []

    async def work(worker: int) -> None:
        client = await one.connect()
        # Each another one: the same one again and again would be slowed down as polling is.
        statuses.extend([(await client.ask(get(f"/up/{worker}/{number}"))).status for number in range(30)])

    await asyncio.gather(*[work(worker) for worker in range(10)])
    assert len(statuses) == 300
    assert statuses.count(429) < 60
    assert set(statuses) <= {200, 429}
    (view,) = breaker(one).snapshot()
    assert view.limit is not None
    assert 3 <= view.limit <= 6
    assert most == 4


# ---------------------------------------------------------------------- retries


def attempts(one: Any) -> list[tuple[int, Verdict]]:
    return [(record.outcome.status, record.outcome.verdict) for record in one.attempts]


async def test_a_call_is_tried_three_times_at_most(mesh: Any, upstream: Any) -> None:
    server = Server(*[(b"503 Service Unavailable", ())] * 9)
    up = await upstream(server)
    one = await mesh(llm_policy(up.port) + "rules: [{match: {}, breaker: {consecutive: 100}}]\n")
    assert (await one.fetch(post(CHAT_PATH, CHAT))).status == 503
    assert server.asked == 3
    assert attempts(one) == [(503, Verdict.FAILURE)] * 3


async def test_retries_are_a_fifth_of_the_calls(mesh: Any, upstream: Any) -> None:
    server = Server(*[(b"503 Service Unavailable", ())] * 500)
    up = await upstream(server)
    one = await mesh(llm_policy(up.port) + "rules: [{match: {}, breaker: {consecutive: 1000, volume: 10000}}]\n")
    client = await one.connect()
    for _ in range(100):
        assert (await client.ask(post(CHAT_PATH, CHAT))).status == 503
    # A fifth, and the two that a quiet upstream always has.
    assert 100 < server.asked <= 122


async def test_every_attempt_is_reserved_by_itself(mesh: Any, upstream: Any) -> None:
    held: list[int] = []

    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            held.append(sum(view.reserved for view in ledger.snapshot()))
            if len(held) < 3:
                peer.reply(status=b"503 Service Unavailable")
            else:
                peer.reply(CHAT_REPLY, b"content-type: application/json")

    up = await upstream(script)
    one = await mesh(llm_policy(up.port) + "rules: [{match: {}, budget: {tokens: 100000}}]\n")
    ledger = next(each for each in one.proxy.chain.per_attempt if each.name == "budget").ledger
    assert (await one.fetch(post(CHAT_PATH, CHAT))).status == 200
    # Each alone: what an attempt before it held was settled when that one ended.
    assert len(set(held)) == 1
    assert held[0] > 0
    assert sum(view.reserved for view in ledger.snapshot()) == 0


async def test_nothing_is_tried_again_once_a_byte_has_left(mesh: Any, upstream: Any) -> None:
    asked = 0

    async def script(peer: Any) -> None:
        nonlocal asked
        await peer.request()
        asked += 1
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event({"content": "a"}))
        await peer.writer.drain()
        await turns()
        peer.reset()

    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    assert b"200 OK" in await client.rest()
    assert asked == 1
    assert one.attempts[0].outcome.verdict is Verdict.FAILURE


# ---------------------------------------------------------------------- streams

STREAM = CHAT[:-1] + b',"stream":true}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PING = b": still here\n\n"
DONE = b"data: [DONE]\n\n"


def event(delta: dict[str, Any]) -> bytes:
    chunk = {"id": "c1", "model": "m", "created": 1, "choices": [{"index": 0, "delta": delta}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


ROLE, TOKEN = event({"role": "assistant", "content": ""}), event({"content": "hello"})


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Streamer:
    """Sends the pieces that a test gives it, for each request from its own list."""

    def __init__(self, *streams: list[bytes]) -> None:
        self.streams = list(streams)
        self.asked = 0

    async def __call__(self, peer: Any) -> None:
        while True:
            await peer.request()
            pieces = self.streams[self.asked]
            self.asked += 1
            peer.send(HEAD)
            for each in pieces:
                peer.send(piece(each))
                await peer.writer.drain()
                await turns(2)
            if pieces and pieces[-1] == DONE:
                peer.send(b"0\r\n\r\n")
            else:
                await peer.closed()
                return


def hearing(one: Any) -> Any:
    """Whether an upstream's head has come to an attempt that is under way."""
    return [exchange for exchange in one.proxy.live if exchange.attempt is not None and exchange.attempt.status]


@pytest.mark.parametrize("pieces", [[], [PING], [PING, ROLE, PING]], ids=["head", "ping", "role"])
async def test_neither_a_head_nor_a_ping_is_a_token(mesh: Any, upstream: Any, pieces: list[bytes]) -> None:
    streamer = Streamer(pieces)
    up = await upstream(streamer)
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s}") + NO_RETRY)
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    await until(lambda: hearing(one))
    await turns(30)
    one.expire(5.5)
    reply = await client.reply("POST")
    assert (reply.status, reply.get(b"x-meshd-reason")) == (504, b"upstream_timeout")
    assert b"no token within 5 s" in reply.body
    outcome = one.attempts[0].outcome
    assert (outcome.fault, outcome.verdict) == (Fault.FIRST_TOKEN_TIMEOUT, Verdict.FAILURE)


async def test_no_head_in_time_is_no_token_in_time(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.closed()

    up = await upstream(script)
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s}") + NO_RETRY)
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    await until(lambda: up.received)
    await turns()
    one.expire(5.5)
    assert (await client.reply("POST")).status == 504
    assert one.attempts[0].outcome.fault is Fault.FIRST_TOKEN_TIMEOUT


async def test_another_attempt_takes_the_place_of_a_stream_without_a_token(mesh: Any, upstream: Any) -> None:
    streamer = Streamer([PING, ROLE], [ROLE, TOKEN, DONE])
    up = await upstream(streamer)
    one = await mesh(
        llm_policy(up.port, ", timeouts: {first_token: 5s}") + "rules: [{match: {}, retry: {on: [timeout]}}]\n"
    )
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    await until(lambda: hearing(one))
    await turns(30)
    one.expire(5.5)
    reply = await client.reply("POST")
    assert (reply.status, reply.body) == (200, ROLE + TOKEN + DONE)
    assert streamer.asked == 2
    assert [record.outcome.verdict for record in one.attempts] == [Verdict.FAILURE, Verdict.SUCCESS]


async def test_a_token_in_time_lets_the_stream_through_as_it_is(mesh: Any, upstream: Any) -> None:
    up = await upstream(Streamer([PING, ROLE, TOKEN, PING, TOKEN, DONE]))
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s}"))
    reply = await one.fetch(post(CHAT_PATH, STREAM))
    assert (reply.status, reply.body) == (200, PING + ROLE + TOKEN + PING + TOKEN + DONE)
    outcome = one.attempts[0].outcome
    assert outcome.verdict is Verdict.SUCCESS
    assert outcome.first_token_s is not None
    assert outcome.taken_s >= outcome.first_token_s >= (outcome.first_byte_s or 0.0)


async def test_a_stream_that_ends_without_a_token_ends(mesh: Any, upstream: Any) -> None:
    up = await upstream(Streamer([PING, ROLE, DONE]))
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s}"))
    reply = await one.fetch(post(CHAT_PATH, STREAM))
    assert (reply.status, reply.body) == (200, PING + ROLE + DONE)
    assert one.attempts[0].outcome.first_token_s is None


async def test_a_flood_before_the_first_token_is_not_kept(mesh: Any, upstream: Any) -> None:
    flood = [b": " + b"x" * 8000 + b"\n\n"] * 12
    up = await upstream(Streamer([*flood, TOKEN, DONE]))
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s}"))
    reply = await one.fetch(post(CHAT_PATH, STREAM))
    assert (reply.status, reply.body) == (200, b"".join(flood) + TOKEN + DONE)


async def test_after_its_first_token_only_a_gap_ends_it(mesh: Any, upstream: Any) -> None:
    up = await upstream(Streamer([ROLE, TOKEN]))
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s, gap: 20s}"))
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    await client.reader.readuntil(b"hello")
    one.expire(10.0)
    assert not one.attempts[0].outcomes
    one.expire(10.5)
    assert one.attempts[0].outcome.fault is Fault.GAP_TIMEOUT
    assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_a_plain_answer_owes_no_token(mesh: Any, upstream: Any) -> None:
    gate = asyncio.Event()

    async def script(peer: Any) -> None:
        await peer.request()
        await gate.wait()
        peer.reply(CHAT_REPLY, b"content-type: application/json")

    up = await upstream(script)
    one = await mesh(llm_policy(up.port, ", timeouts: {first_token: 5s}"))
    client = await one.connect()
    client.send(post(CHAT_PATH, CHAT))
    await until(lambda: up.received)
    one.expire(8.0)
    gate.set()
    assert (await client.reply("POST")).status == 200


async def test_without_the_setting_a_head_leaves_at_once(mesh: Any, upstream: Any) -> None:
    up = await upstream(Streamer([PING]))
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    assert b"200 OK" in await client.reader.readuntil(PING)
    client.abort()


RESPONSES = b'{"model":"m","input":"hi","stream":true}'


def said(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


ENDS = {
    "chat, whole": (CHAT_PATH, STREAM, ROLE + TOKEN + DONE, Verdict.SUCCESS),
    "chat, no [DONE]": (CHAT_PATH, STREAM, ROLE + TOKEN, Verdict.FAILURE),
    "chat, an error": (CHAT_PATH, STREAM, ROLE + b'data: {"error": {"message": "x"}}\n\n' + DONE, Verdict.FAILURE),
    "responses, whole": (
        "/llm/v1/responses",
        RESPONSES,
        said("response.created", response={"id": "r1"}) + said("response.completed", response={"id": "r1"}),
        Verdict.SUCCESS,
    ),
    "responses, cut short": (
        "/llm/v1/responses",
        RESPONSES,
        said("response.created", response={"id": "r1"}) + said("response.output_text.delta", delta="a"),
        Verdict.FAILURE,
    ),
    "responses, failed and counted": (
        "/llm/v1/responses",
        RESPONSES,
        said(
            "response.failed",
            response={"id": "r1", "status": "failed", "usage": {"input_tokens": 3, "output_tokens": 1}},
        ),
        Verdict.FAILURE,
    ),
    "messages, whole": (
        "/claude/v1/messages",
        STREAM,
        said("message_start", message={"id": "m1"}) + said("message_stop"),
        Verdict.SUCCESS,
    ),
    "messages, no message_stop": (
        "/claude/v1/messages",
        STREAM,
        said("message_start", message={"id": "m1"}) + said("ping"),
        Verdict.FAILURE,
    ),
    "messages, too many on the way": (
        "/claude/v1/messages",
        STREAM,
        said("message_start", message={"id": "m1"}) + said("error", error={"type": "rate_limit_error"}),
        Verdict.BACKPRESSURE,
    ),
    "responses, failed since there are too many": (
        "/llm/v1/responses",
        RESPONSES,
        said("response.failed", response={"id": "r1", "status": "failed", "error": {"code": "rate_limit_exceeded"}}),
        Verdict.BACKPRESSURE,
    ),
    "messages, overloaded on the way": (
        "/claude/v1/messages",
        STREAM,
        said("message_start", message={"id": "m1"}) + said("error", error={"type": "overloaded_error"}),
        Verdict.FAILURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
async def test_a_stream_succeeds_at_its_terminal_event(mesh: Any, upstream: Any, name: str) -> None:
    path, body, stream, verdict = ENDS[name]

    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(HEAD + piece(stream) + b"0\r\n\r\n")

    up = await upstream(script)
    one = await mesh(
        llm_policy(up.port) + f'  claude: {{url: "http://127.0.0.1:{up.port}", kind: llm, dialect: anthropic}}\n'
    )
    with contextlib.suppress(ConnectionError):
        await one.fetch(post(path, body))
    assert one.attempts[0].outcome.verdict is verdict


@pytest.mark.parametrize(
    ("code", "verdict"), [("server_is_overloaded", Verdict.FAILURE), ("rate_limit_exceeded", Verdict.BACKPRESSURE)]
)
async def test_a_client_that_hangs_up_at_an_error_does_not_hide_it(
    mesh: Any, upstream: Any, code: str, verdict: Verdict
) -> None:
    error = f'data: {{"error": {{"code": "{code}"}}}}\n\n'.encode()
    up = await upstream(Streamer([ROLE + TOKEN + error]))
    one = await mesh(llm_policy(up.port))
    client = await one.connect()
    client.send(post(CHAT_PATH, STREAM))
    await client.reader.readuntil(error)
    client.abort()
    await until(lambda: one.proxy.live and all(each.is_caller_gone for each in one.proxy.live))
    one.expire(61.0)
    await until(lambda: one.attempts[0].outcomes)
    outcome = one.attempts[0].outcome
    assert (outcome.verdict, outcome.fault, outcome.status) == (verdict, Fault.CALLER_GONE, 200)
    (view,) = breaker(one).snapshot()
    assert view.limit < 1024


# ---------------------------------------------------------------------- the breaker


async def test_a_probe_whose_caller_hangs_up_makes_room_for_the_next(mesh: Any, upstream: Any) -> None:
    server = Server(*[(b"500 Oh", ())] * 2)
    up = await upstream(server)
    one = await mesh(
        plain_policy(up.port)
        + "rules: [{match: {}, retry: {attempts: 0}, breaker: {consecutive: 2, open: 1s, probes: 1}}]\n"
    )
    for _ in range(2):
        assert (await one.fetch(get())).status == 500
    assert (await one.fetch(get())).get(b"x-meshd-reason") == b"circuit_open"
    one.ahead_s += 2.0
    server.gate.clear()
    gone = await one.connect()
    gone.send(get())
    await until(lambda: server.asked == 3)
    assert (await one.fetch(get())).get(b"x-meshd-reason") == b"circuit_open"
    gone.abort()
    await one.idle()
    server.gate.set()
    assert [(await one.fetch(get())).status for _ in range(2)] == [200, 200]
    assert [view.state.value for view in breaker(one).snapshot()] == ["closed"]
    assert breaker(one).turned == {("up", "open"): 1, ("up", "half-open"): 1, ("up", "closed"): 1}


async def test_an_open_breaker_is_worth_a_retry_only_when_it_will_have_closed(mesh: Any, upstream: Any) -> None:
    up = await upstream(Server(*[(b"500 Oh", ())] * 2))
    one = await mesh(
        plain_policy(up.port) + "rules: [{match: {}, retry: {attempts: 0}, breaker: {consecutive: 2, open: 10s}}]\n"
    )
    for _ in range(2):
        await one.fetch(get())
    reply = await one.fetch(get())
    assert (reply.status, reply.get(b"x-should-retry"), reply.get(b"retry-after")) == (503, b"false", None)
    (view,) = breaker(one).snapshot(one.proxy.clock())
    one.ahead_s += view.reopens_s - 1.5
    reply = await one.fetch(get())
    assert (reply.status, reply.get(b"x-should-retry")) == (503, b"true")
    assert reply.get(b"retry-after") in (b"1", b"2")
