"""Events pushed to agents that only take calls: what they get, and what their answers mean."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd.api import pushing
from meshd.api.pushing import Pushing
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Event
from meshd.engines.port import StoreError
from meshd_sdk import context as codec
from meshd_sdk.v1 import events_pb2 as ev
from tests.api.test_session_events import publish
from tests.engines.buses import Hands
from tests.proxy.harness import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.proxy.messages import Message

pytestmark = pytest.mark.both_loops

POLICY = """
agent: manager
upstreams:
  worker: {{url: "http://127.0.0.1:{port}/base", kind: agent}}
subscriptions:
  - {{topic: "task.*", to: worker, path: /hook{time}}}
{more}
"""


class Agent:
    """What an agent at an address was handed. It answers as `answers` says, at last with 200."""

    def __init__(self, *answers: tuple[bytes, ...], said: bytes = b"said") -> None:
        self.answers = list(answers)
        self.said = said
        self.got: list[Message] = []

    async def __call__(self, peer: Any) -> None:
        while True:
            self.got.append(await peer.request())
            status, *fields = self.answers.pop(0) if self.answers else (b"200 OK",)
            peer.reply(self.said, *fields, status=status)


@pytest.fixture
def pushed(door: Any, upstream: Any) -> Callable[..., Awaitable[Any]]:
    async def start(agent: Agent, more: str = "", *, time: str = "", is_gone: bool = False, **options: Any) -> Any:
        taker = await upstream(agent)
        if is_gone:
            await taker.close()
        bus = options.pop("bus", None) or MemoryBus()
        one = await door(POLICY.format(port=taker.port, more=more, time=time), bus, **options)
        one.pushing = Pushing(one.mesh)
        one.pushing.take(one.mesh.policy)
        await until(lambda: all(push._subscription for push in one.pushing._pushes.values()))
        return one

    return start


async def settled(one: Any, topic: str = "task.*") -> Any:
    """Wait until nothing is under way or waits; return how the group stands."""
    while True:
        await asyncio.sleep(0)
        (position,) = [each for each in await one.mesh.bus.positions() if each.topic == topic]
        counts = one.mesh.event_counts
        if sum(counts.settled.values()) + sum(counts.refusals.values()) and not position.under_way:
            return position


async def test_an_event_is_a_post_in_binary_mode_with_its_context(pushed: Any) -> None:
    agent = Agent()
    one = await pushed(agent)
    manager = await one.peer("manager")
    data, subject = b'{"q": 1}', "bees €"
    done = await publish(manager, "task.done", id="e1", data=data, subject=subject, extensions={"tone": "kind"})
    await until(lambda: agent.got)
    got = agent.got[0]
    assert (got.method, got.target, got.body) == (b"POST", b"/base/hook", data)
    assert got.get(b"content-type") == b"application/json"
    assert {
        name: got.get(b"ce-" + name) for name in (b"specversion", b"id", b"source", b"type", b"subject", b"tone")
    } == {
        b"specversion": b"1.0",
        b"id": b"e1",
        b"source": b"manager",
        b"type": b"task.done",
        b"subject": b"bees%20%E2%82%AC",
        b"tone": b"kind",
    }
    assert got.get(b"ce-sequence") == done.response.sequence.encode()
    assert got.get(b"meshd-event-attempt") == b"1"
    context = one.mesh.read(got.get(codec.HEADER_CONTEXT) or b"", "worker")
    assert (context.agent, context.hops, context.path) == ("worker", 1, ("manager",))
    assert context.account.startswith("unattributed/manager/"), "whoever published pays"
    assert (await settled(one)).waiting == 0
    assert one.mesh.event_counts.settled["task.done", "success"] == 1
    await one.pushing.end(0)


async def test_the_app_gets_it_as_another_sidecars_call(pushed: Any, upstream: Any) -> None:
    app, worker = Agent(), Agent()
    taker = await upstream(app)
    more = "  - {topic: audit.done, to: app}"
    one = await pushed(worker, more, app=f"http://127.0.0.1:{taker.port}")
    researcher = await one.peer("researcher")
    await publish(researcher, "audit.done", id="a")
    await until(lambda: app.got)
    got = app.got[0]
    assert got.target == b"/events"
    context = one.mesh.read(got.get(codec.HEADER_CONTEXT) or b"", "manager")
    assert (context.agent, context.hops, context.path) == ("manager", 1, ("researcher",))
    await settled(one, "audit.done")
    await one.pushing.end(0)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (b"204 No Content", "success"),
        (b"202 Accepted", "success"),
        (b"410 Gone", "drop"),
        (b"400 Bad Request", "drop"),
        (b"404 Not Found", "drop"),
        (b"408 Request Timeout", "retry"),
        (b"425 Too Early", "retry"),
        (b"500 Internal Server Error", "retry"),
        (b"302 Found", "retry"),
    ],
)
async def test_what_a_status_means(pushed: Any, status: bytes, verdict: str) -> None:
    agent = Agent((status,))
    one = await pushed(agent, "rules:\n  - {match: {kind: agent}, retry: {attempts: 1}}")
    await one.mesh.bus.publish([Event("task.done", "manager", "e1")])
    position = await settled(one)
    assert one.mesh.event_counts.settled == {("task.done", verdict): 1}
    assert position.dropped == (verdict == "drop")
    assert position.waiting == (verdict == "retry")
    await one.pushing.end(0)


@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Service Unavailable"])
async def test_retry_after_is_honoured(pushed: Any, status: bytes) -> None:
    clock = Hands()
    agent = Agent((status, b"retry-after: 77"))
    more = "rules:\n  - {match: {kind: agent}, retry: {attempts: 1}}"
    one = await pushed(agent, more, bus=MemoryBus(clock=clock))
    await one.mesh.bus.publish([Event("task.done", "manager", "e1")])
    assert (await settled(one)).waiting == 1
    clock.move(76.0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(agent.got) == 1
    one.plane.expire(100.0)  # the breaker's own clock: it leaves the agent alone for as long
    clock.move(1.5)
    await until(lambda: len(agent.got) == 2)
    assert agent.got[1].get(b"meshd-event-attempt") == b"2"
    await until(lambda: one.mesh.event_counts.settled["task.done", "success"])
    await one.pushing.end(0)


async def test_what_cannot_be_handed_over_becomes_a_dead_letter_with_the_reason(pushed: Any, door: Any) -> None:
    agent = Agent()
    one = await pushed(
        agent, "rules:\n  - {name: no-worker, match: {kind: event, agent: worker}, deny: not for workers}"
    )
    await one.mesh.bus.publish([Event("task.done", "manager", "e1", token=b"")])
    await until(lambda: one.mesh.event_counts.refusals["handle", "not_allowed"] == 8)
    (letter,) = await one.mesh.bus.dead_letters("worker")
    assert (letter.event.id, letter.attempts) == ("e1", 8)
    assert letter.reason.startswith("not_allowed: task.done is not allowed: not for workers")
    assert not agent.got
    await one.pushing.end(0)


@pytest.mark.parametrize(("status", "verdict"), [(b"200 OK", "success"), (b"410 Gone", "drop")])
async def test_an_agent_that_says_much_has_been_heard(pushed: Any, status: bytes, verdict: str) -> None:
    agent = Agent((status,), said=bytes(4 * 2**20))
    one = await pushed(agent)
    await publish(await one.peer("manager"), "task.done", id="e1")
    await until(lambda: one.mesh.event_counts.settled)
    assert one.mesh.event_counts.settled["task.done", verdict] == 1
    assert len(agent.got) == 1
    await one.pushing.end(0)


@pytest.mark.parametrize(
    ("begins", "ids"),
    [("", []), ("starts_after: 1", ["b", "c"]), ("starts_at: 1970-01-01T00:00:00Z", ["a", "b", "c"])],
)
async def test_a_new_group_begins_where_the_policy_says(pushed: Any, begins: str, ids: list[str]) -> None:
    bus, agent = MemoryBus(), Agent()
    await bus.publish([Event("task.done", "manager", id) for id in "abc"])
    one = await pushed(agent, time=f", {begins}" if begins else "", bus=bus)
    await bus.publish([Event("task.done", "manager", "d")])
    await until(lambda: len(agent.got) == len(ids) + 1)
    assert sorted((got.get(b"ce-id") or b"").decode() for got in agent.got) == [*ids, "d"]
    await one.pushing.end(0)


class Behind(MemoryBus):
    """A bus that comes an event further whenever it is asked, and breaks off twice on the way."""

    asked = 0

    async def subscribe(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        if self.asked in (3, 4):
            raise StoreError("it broke off")
        try:
            return await super().subscribe(*args, **options)
        finally:
            await self.publish([Event("task.done", "manager", str(self.asked))])


async def test_what_keeps_a_group_from_beginning_is_said_when_it_changes(
    pushed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pushing, "AGAIN_S", 0.0)
    bus = Behind()
    one = await pushed(Agent(), time=", starts_after: 4", bus=bus)
    said = [record.getMessage() for record in caplog.records if record.name == "meshd.events"]
    assert bus.asked == 7
    assert [words.split(": ")[-1] for words in said] == [
        "00000000000000000004 is no event of this bus, whose last one is 00000000000000000000; it is asked again",
        "it broke off; it is asked again",
        "00000000000000000004 is no event of this bus, whose last one is 00000000000000000002; it is asked again",
    ]
    await one.pushing.end(0)


async def test_a_reload_ends_and_begins_subscriptions(pushed: Any) -> None:
    agent = Agent()
    one = await pushed(agent)
    plane = one.plane
    port = one.mesh.policy.upstreams["worker"].port
    before = next(iter(one.pushing._pushes.values()))
    policy = plane.load(POLICY.format(port=port, time="", more="  - {topic: other, to: worker, group: second}"))
    plane.proxy.swap(policy)
    one.pushing.take(policy)
    assert len(one.pushing._pushes) == 2
    assert before in one.pushing._pushes.values(), "what stays as it is goes on"
    policy = plane.load("agent: manager\nupstreams: {}\n")
    plane.proxy.swap(policy)
    one.pushing.take(policy)
    assert not one.pushing._pushes
    await one.pushing.end(0)
    await one.mesh.bus.publish([Event("task.done", "manager", "late")])
    assert not agent.got


@pytest.mark.parametrize("end", ["broken off", "silent", "half an answer"])
async def test_what_may_have_reached_an_agent_that_is_not_heard_of_is_marked(pushed: Any, end: str) -> None:
    got: list[Message] = []

    async def agent(peer: Any) -> None:
        while True:
            got.append(await peer.request())
            if len(got) > 1:
                peer.reply(b"said")
            elif end == "silent":
                await peer.request()
            else:
                if end == "half an answer":
                    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                peer.abort()
                return

    time = ", handling_time: 200ms" if end == "silent" else ""
    one = await pushed(agent, "rules:\n  - {match: {kind: agent}, retry: {attempts: 1}}", time=time)
    await one.mesh.bus.publish([Event("task.done", "manager", "e1")])
    await until(lambda: one.mesh.event_counts.settled["task.done", "success"])
    marks = [(each.get(b"meshd-event-attempt"), each.get(b"meshd-event-may-have-been-handled")) for each in got]
    assert marks == [(b"1", None), (b"2", b"true")]
    assert one.mesh.event_counts.settled == {("task.done", "success"): 1}
    await one.pushing.end(0)


async def test_what_never_reached_an_agent_is_a_retry_and_not_marked(pushed: Any) -> None:
    one = await pushed(Agent(), "rules:\n  - {match: {kind: agent}, retry: {attempts: 1}}", is_gone=True)
    await one.mesh.bus.publish([Event("task.done", "manager", "e1")])
    position = await settled(one)
    assert (position.waiting, position.dropped) == (1, 0)
    assert one.mesh.event_counts.settled == {("task.done", "retry"): 1}
    await one.pushing.end(0)


async def test_an_agent_that_is_not_heard_of_holds_up_no_end(pushed: Any) -> None:
    async def deaf(peer: Any) -> None:
        await peer.request()
        peer.abort()

    one = await pushed(deaf)
    await one.mesh.bus.publish([Event("task.done", "manager", "e1")])
    (push,) = one.pushing._pushes.values()
    await until(lambda: push._unheard)
    await one.pushing.end(60)
    again = await (await one.mesh.bus.subscribe("task.*", "worker")).next()
    assert (again.attempt, again.may_have_been_handled) == (2, True)


def test_verdicts_have_their_numbers() -> None:
    assert (ev.VERDICT_SUCCESS, ev.VERDICT_RETRY, ev.VERDICT_DROP) == (1, 2, 3)
