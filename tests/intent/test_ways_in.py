"""The same words by a session, by gRPC and over HTTP/2, and what telemetry keeps of them."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from meshd.intent.barring import Health
from meshd.intent.resolver import Resolver
from meshd.telemetry import names
from meshd.telemetry.span_attributes import attributes
from tests.api.conftest import door
from tests.grpc import testing_pb2 as pb
from tests.grpc.conftest import channel, serve, stub
from tests.intent.agents import SAID, who
from tests.proxy.conftest import h2_client
from tests.proxy.harness import echo
from tests.proxy.messages import Message

__all__ = ["channel", "door", "h2_client", "serve", "stub"]

DOCUMENT = (
    "agent: manager\nupstreams:\n"
    '  tools: {{kind: agent, url: "http://127.0.0.1:{port}", intents: ["find bees"]}}\n'
    '  researcher: {{session: true, description: "Looks up papers and articles.", intents: ["find a paper"]}}\n'
)


def resolving(plane: Any) -> None:
    proxy = plane.proxy
    health = Health(has_session=lambda name: proxy.agents.named(name) is not None)
    proxy.intents = Resolver(lambda: proxy.book, proxy.chain.context.speaker, health=health)


async def test_a_session_calls_who_serves_it(door: Any, upstream: Any) -> None:
    seen: list[Message] = []

    async def script(peer: Any) -> None:
        while True:
            seen.append(await peer.request())
            peer.reply(b"hello", b"content-type: text/plain")

    server = await upstream(script)
    one = await door(DOCUMENT.format(port=server.port))
    resolving(one.plane)
    agent = await one.peer("manager")
    for words in ("find bees", "find%20bees", "find/bees"):
        reply = await agent.ask(f"mesh://intent/{words}", "v1/run?x=1", b"{}")
        assert (reply.status.code, reply.payload) == (0, b"hello")
        assert reply.status.metadata["intent_target"] == "tools"
        assert seen.pop().target == b"/v1/run?x=1"


async def test_a_session_is_called_by_what_it_serves(door: Any) -> None:
    one = await door(DOCUMENT.format(port=9))
    resolving(one.plane)
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    id = await manager.call("mesh://intent/find a paper on bees", "search", b'{"q": 1}')
    delivery = await researcher.next("call")
    assert (delivery.operation, delivery.payload) == ("search", b'{"q": 1}')
    await researcher.answer(delivery, b"{}")
    assert (await manager.reply(id)).status.metadata["intent_target"] == "researcher"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("mesh://intent/", "malformed"),
        ("mesh://intent/%00", "malformed"),
        ("mesh://intent/" + "a" * 2000, "malformed"),
        ("mesh://intent/sing a song", "unknown_target"),
        ("mesh://intent/papers and articles", "unknown_target"),  # the researcher has no session
        ("mesh://other/find", "unknown_target"),
        ("mesh://", "unknown_target"),
    ],
)
async def test_a_session_that_asks_for_nonsense(door: Any, target: str, reason: str) -> None:
    one = await door(DOCUMENT.format(port=9))
    resolving(one.plane)
    agent = await one.peer("manager")
    reply = await agent.ask(target, "", b"{}")
    assert (reply.status.code != 0, reply.status.reason) == (True, reason)


async def test_a_span_keeps_the_choice_and_not_the_words(agents: Any) -> None:
    one = await agents(SAID)
    assert who(await one.call("/intent/refund%20the%20customer%20of%20order%207/x")) == "billing"
    record = one.house.mesh.calls[0]
    found = attributes(record.call, 200, record.outcome, None, None, names.OK)
    assert found[names.MESHD_INTENT_TARGET] == "billing"
    assert found[names.MESHD_INTENT_CHOICE] == "chosen"
    assert 0.3 <= found[names.MESHD_INTENT_SCORE] < 1
    assert not [value for value in found.values() if "order" in str(value)]
    assert who(await one.call("/billing/x")) == "billing"
    record = one.house.mesh.calls[1]
    assert names.MESHD_INTENT_TARGET not in attributes(record.call, 200, record.outcome, None, None, names.OK)


async def test_choices_are_counted(agents: Any) -> None:
    one = await agents(SAID)
    await one.call("/intent/audit/x")
    await one.call("/intent/nonsense/x")
    one.house.mesh.telemetry.read_sources()
    text, _ = one.house.mesh.telemetry.render()
    assert 'meshd_intents_total{choice="named"} 1.0' in text.decode()
    assert 'meshd_intents_total{choice="unclear"} 1.0' in text.decode()


async def test_a_grpc_call_says_it_in_metadata(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    plane = await mesh(
        "agent: planner\nupstreams:\n"
        f'  billing: {{url: "http://127.0.0.1:{server.port}", kind: agent, intents: ["refund a customer"]}}\n'
        '  audit: {url: "http://127.0.0.1:9", kind: agent, intents: ["review code"]}\n'
        "rules: [{match: {target: audit}, deny: never}]\n"
    )
    resolving(plane)
    client = stub(plane.port, "intent.mesh")
    await client.UnaryCall(pb.SimpleRequest(), metadata=(("x-meshd-intent", "refund a customer"),))
    named = (("x-meshd-target", "intent"), ("x-meshd-intent", "refund%20a%20customer"))
    await stub(plane.port, "").UnaryCall(pb.SimpleRequest(), metadata=named)
    assert server.servicer.calls == 2
    assert not [name for name in server.servicer.metadata[0] if name.startswith("x-meshd-intent")]
    for metadata, code in (
        ((), grpc.StatusCode.INVALID_ARGUMENT),
        ((("x-meshd-intent", "sing a song"),), grpc.StatusCode.NOT_FOUND),
        ((("x-meshd-intent", "review code"),), grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await client.UnaryCall(pb.SimpleRequest(), metadata=metadata)
        assert told.value.code() is code
    assert server.servicer.calls == 2


async def test_a_refused_intent_leaves_no_words_in_a_span(agents: Any) -> None:
    one = await agents(SAID)
    seen: list[Any] = []
    ended = one.house.mesh.telemetry.ended

    def spy(call: Any, status: int, outcome: Any, refused: Any, *, meter: Any = None) -> None:
        seen.append(attributes(call, status, outcome, refused, meter, names.REFUSED))
        ended(call, status, outcome, refused, meter=meter)

    one.house.mesh.telemetry.ended = spy
    await one.call("/intent/sing%20me%20a%20song/x")
    (found,) = seen
    assert found[names.MESHD_REASON] == "unknown_target"
    assert not [value for value in found.values() if "song" in str(value)]


async def test_over_http2(mesh: Any, upstream: Any, h2_client: Any) -> None:
    one, two = await upstream(echo), await upstream(echo)
    label = "kind: agent, labels: {ai.acme.intent: translation}"
    plane = await mesh(
        f'agent: planner\nupstreams:\n  one: {{url: "http://127.0.0.1:{one.port}", {label}}}\n'
        f'  two: {{url: "http://127.0.0.1:{two.port}", {label}}}\nintents: {{fan_out: 2}}\n'
    )
    resolving(plane)
    client = await h2_client(plane)
    half = await client.ask("/intent/translation/a?b=c")
    assert (half.status, half.body) == (200, b"GET /a?b=c\n")
    half = await client.ask("/intent/translation/a?b=c", method="POST", body=b"body")
    answers = json.loads(half.body)["answers"]
    assert [(answer["agent"], answer["body"]) for answer in answers] == [
        ("one", "POST /a?b=c\nbody"),
        ("two", "POST /a?b=c\nbody"),
    ]
    assert (await client.ask("/intent/a%00b/x")).status == 400
