"""An event whose handler makes a call that a person must allow: it waits for the decision, and is no dead letter."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest

from meshd.api import setting_aside
from meshd.api.door import Door
from meshd.api.events import event_service
from meshd.api.mesh import Mesh
from meshd.api.pushing import Pushing
from meshd.api.setting_aside import KEEP_S, SettingAside
from meshd.approvals.hands import Whose
from meshd.approvals.state import State
from meshd.config import Address
from meshd.engines.memory import MemoryStore
from meshd.ledger import Ledger
from meshd.mesh_key import MeshKeys
from meshd_sdk import Agent, Ctx, Event, Retry
from meshd_sdk import context as codec
from meshd_sdk.errors import ApprovalDenied, ApprovalPending
from meshd_sdk.v1 import events_pb2 as ev
from tests.engines.buses import TERMS, BusPlace, bus_place
from tests.proxy.harness import until
from tests.rpc.asking import decide, document, pending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from meshd.engines.bus_port import Position
    from tests.proxy.harness import Mesh as Plane
    from tests.proxy.messages import Message

ENGINES = ("memory", "sqlite", "redis", "nats")


class Tool:
    """What reaches the tool."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def __call__(self, peer: Any) -> None:
        while True:
            self.got.append((await peer.request()).body)
            peer.reply(b'{"done": true}', b"content-type: application/json")


class House:
    """A sidecar with a tool that asks people, and a bus whose clock the test moves."""

    def __init__(self, plane: Plane, place: BusPlace, tool: Tool) -> None:
        assert plane.desk is not None
        self.plane = plane
        self.place = place
        self.tool = tool
        self.bus = place.open(TERMS)
        self.desk = plane.desk
        self.mesh = Mesh(
            proxy=plane.proxy,
            chain=plane.proxy.chain,
            keys=MeshKeys(plane.home / "mesh.key"),
            ledger=Ledger.in_memory(),
            telemetry=plane.telemetry,
            bus=self.bus,
            desk=plane.desk,
        )
        self.counts = self.mesh.event_counts
        self.door = Door(self.mesh, home=plane.home)

    async def close(self) -> None:
        await self.door.close()
        if self.mesh.aside is not None:
            self.mesh.aside.end()
        await self.bus.close()
        await self.mesh.ledger.close()

    def agent(self, name: str = "worker", **more: Any) -> Agent:
        return Agent(name, api=str(self.door.address), environ={}, grace=0, **more)

    async def position(self, group: str = "worker") -> Position:
        (found,) = [one for one in await self.bus.positions() if one.group == group]
        return found

    async def deferred(self, many: int) -> None:
        """Wait until so many attempts were set aside."""
        async with asyncio.timeout(30):
            while sum(n for (_, result), n in self.counts.settled.items() if result == "deferred") < many:
                await asyncio.sleep(0.002)

    async def soon(self, is_so: Callable[[], Any]) -> None:
        """Let the loop and the bus's clock go on a little, again and again, until `is_so()`."""
        async with asyncio.timeout(30):
            while not is_so():
                await asyncio.sleep(0.002)
                self.place.clock.move(0.0)


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    with bus_place(request.param, tmp_path) as one:
        yield one


@pytest.fixture
async def start(mesh: Any, upstream: Any, place: BusPlace) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    houses: list[House] = []

    async def begin(rule: str = "hold: 0s", more: str = "", upstreams: str = "", kind: str = "tool") -> House:
        tool = Tool()
        port = (await upstream(tool)).port
        text = document("billing", port, "tool", "none", rule).replace(", dialect: none, discover: false", "") + more
        text = text.replace("upstreams: {", "upstreams: {" + upstreams)
        text = text.replace("match: {kind: tool}", f"match: {{kind: {kind}}}")
        house = House(await mesh(text, store=MemoryStore()), place, tool)
        houses.append(house)
        await house.door.start(Address("127.0.0.1", 0))
        return house

    yield begin
    for house in houses:
        await house.close()


class Runs(list[int]):
    """The attempts that a handler has made, by their numbers."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.done: list[str] = []


def refunding(house: House, runs: Runs, **options: Any) -> Agent:
    """Return an agent that refunds each order."""
    agent = house.agent()

    @agent.on("order.*", **options)
    async def refund(ctx: Ctx, event: Event) -> None:
        runs.append(event.attempt)
        try:
            await ctx.call("billing/refunds", {"order": event["order"]})
        except Exception as error:
            runs.errors.append(error)
            raise
        runs.done.append(event["order"])

    return agent


async def test_it_waits_for_as_long_as_people_take_and_is_carried_out_once(start: Any) -> None:
    house, runs = await start(), Runs()
    async with refunding(house, runs) as agent, agent.workflow("w1") as ctx:
        await ctx.publish("order.placed", {"order": "7"})
        await house.deferred(1)
        # Half an hour goes by, in which nobody says that it is to wait on: more often than there are attempts it is
        # handed out again, finds its approval, and is set aside.
        for times in range(2, 14):
            house.place.clock.move(KEEP_S)
            await house.deferred(times)
        assert set(runs) == {1}
        assert (len(runs), len(await pending(house.plane))) == (13, 1)
        assert all(isinstance(one, ApprovalPending) for one in runs.errors)
        assert (await house.position())[3:6] == (0, 1, 0)
        assert house.tool.got == []
        await decide(house.plane)
        await house.soon(lambda: runs.done)
        await house.soon(lambda: ("order.placed", "success") in house.counts.settled)
        assert (len(runs), house.tool.got) == (14, [b'{"order":"7"}'])
        (used,) = await house.desk.list(None, 10)
        assert used.state is State.USED
    assert (await house.position())[3:6] == (0, 0, 0)
    assert await house.bus.dead_letters("worker") == []


async def test_while_somebody_waits_for_the_decision_nobody_is_handed_it(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting_aside, "RENEW_S", 0.001)
    house, runs = await start(), Runs()
    looks = 0
    stands = SettingAside._stands

    async def looked(self: SettingAside, id: str) -> tuple[State | None, str]:
        nonlocal looks
        looks += 1
        return await stands(self, id)

    monkeypatch.setattr(SettingAside, "_stands", looked)
    async with refunding(house, runs) as agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        await house.deferred(1)
        for _ in range(20):
            before = looks
            await until(lambda before=before: looks > before + 2)  # type: ignore[misc]
            house.place.clock.move(KEEP_S - 1.0)
        assert runs == [1]
        assert (await house.position())[3:6] == (0, 1, 0)
        await decide(house.plane)
        await house.soon(lambda: runs.done)
        assert (runs, house.tool.got) == ([1, 1], [b'{"order":"7"}'])
    assert len(house.mesh.aside or ()) == 0


async def test_the_next_of_its_key_waits_and_others_go_on(start: Any) -> None:
    house, runs = await start(), Runs()
    agent = house.agent(credit=1)

    @agent.on("order.*")
    async def refund(ctx: Ctx, event: Event) -> None:
        runs.append(event.attempt)
        if event["order"] == "1":
            await ctx.call("billing/refunds", {"order": "1"})
        runs.done.append(event["order"])

    async with agent:
        for order, key in (("1", "k"), ("2", "k"), ("3", "l"), ("4", "")):
            await agent.ctx.publish("order.placed", {"order": order}, key=key)
        await house.soon(lambda: house.counts.settled["order.placed", "success"] == 2)
        assert runs.done == ["3", "4"]
        assert (await house.position())[3:6] == (0, 2, 0)
        await decide(house.plane)
        await house.soon(lambda: len(runs.done) == 4)
        assert runs.done == ["3", "4", "1", "2"]


async def test_what_is_denied_is_told_the_handler_and_its_attempts_count(start: Any) -> None:
    house, runs = await start(), Runs()
    async with refunding(house, runs) as agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        await house.deferred(1)
        await decide(house.plane, is_allowed=False, reason="wrong customer")
        for attempt in range(1, 9):
            await house.soon(lambda attempt=attempt: len(runs) == attempt + 1)
            async with asyncio.timeout(30):
                while (await house.position()).under_way:
                    await asyncio.sleep(0.002)
            house.place.clock.move(300.0)
        assert runs == [1, *range(1, 9)]
        assert isinstance(runs.errors[1], ApprovalDenied)
        (letter,) = await house.bus.dead_letters("worker")
    assert letter.attempts == 8
    assert "wrong customer" in letter.reason
    assert house.tool.got == []


async def test_an_approval_that_nobody_decided_on_counts_as_an_attempt(start: Any) -> None:
    house, runs = await start(), Runs()
    async with refunding(house, runs) as agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        hour = 0
        for attempt in range(1, 9):
            await house.deferred(attempt)
            await until(lambda: len(house.desk.line) == 1)
            (asked,) = await pending(house.plane)
            hour += 3600
            house.desk.clock = lambda: time.time() + hour  # noqa: B023
            house.desk.line.changed(asked.id)
            await house.soon(lambda attempt=attempt: len(runs) == attempt + 1 or attempt == 8)
        assert runs == list(range(1, 9)), "each asks anew"
        async with asyncio.timeout(30):
            while not (letters := await house.bus.dead_letters("worker")):
                await asyncio.sleep(0.002)
        assert asked.id in letters[0].reason
        assert "nobody decided" in letters[0].reason
        assert letters[0].attempts == 8


def impatient(house: House, runs: Runs, *, after: float) -> Any:
    """Return an agent whose handler says itself when it is to be tried again."""
    agent = house.agent()

    @agent.on("order.*")
    async def refund(ctx: Ctx, event: Event) -> None:
        runs.append(event.attempt)
        try:
            await ctx.call("billing/refunds", {"order": event["order"]})
        except ApprovalPending as error:
            raise Retry("not yet", after=after) from error

    return agent


async def test_a_handler_that_says_when_is_taken_at_its_word(start: Any) -> None:
    house, runs = await start(), Runs()
    async with impatient(house, runs, after=10.0) as agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        for times in range(1, 12):
            await house.deferred(times)
            assert len(runs) == times
            house.place.clock.move(9.0)
            await asyncio.sleep(0.01)
            assert len(runs) == times
            house.place.clock.move(1.0)
        assert set(runs) == {1}
        assert len(house.mesh.aside or ()) == 0


async def test_a_handler_that_would_be_tried_again_at_once_waits_a_second(start: Any) -> None:
    house, runs = await start(), Runs()
    async with impatient(house, runs, after=0.0) as agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        for times in (1, 2, 3):
            await house.deferred(times)
            house.place.clock.move(0.9)
            assert (await house.position())[3:5] == (0, 1)
            await asyncio.sleep(0.01)
            assert len(runs) == times
            house.place.clock.move(0.1)
        assert set(runs) == {1}


async def test_what_went_out_in_an_earlier_attempt_is_not_asked_about_again(start: Any) -> None:
    house, runs = await start(), Runs()
    agent = house.agent()

    @agent.on("order.*")
    async def refund(ctx: Ctx, event: Event) -> None:
        runs.append(event.attempt)
        for part in ("first", "second"):
            async with ctx.step(part):
                await ctx.call("billing/refunds", {"part": part}, idempotency_key=f"{event.id}-{part}")
        runs.done.append(event["order"])

    async with agent, agent.workflow("w1") as ctx:
        await ctx.publish("order.placed", {"order": "7"}, id="e7")
        for times in (1, 2):
            await house.deferred(times)
            await decide(house.plane)
            await house.soon(lambda times=times: len(runs) == times + 1)
        await house.soon(lambda: runs.done)
    assert runs == [1, 1, 1]
    assert house.tool.got == [b'{"part":"first"}', b'{"part":"second"}']
    assert [one.state for one in await house.desk.list(None, 10)] == [State.USED] * 2


async def test_what_fails_for_another_reason_counts_as_ever(start: Any) -> None:
    house, runs = await start("hold: 20s"), Runs()
    agent = house.agent()

    @agent.on("order.*")
    async def refund(ctx: Ctx, event: Event) -> None:
        runs.append(event.attempt)
        await ctx.call("billing/refunds", {"order": event["order"]})
        raise RuntimeError("a bug")

    async with agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        async with asyncio.timeout(30):
            while not await pending(house.plane):
                await asyncio.sleep(0.002)
        await decide(house.plane)  # while its call is held
        await house.soon(lambda: ("order.placed", "retry") in house.counts.settled)
        assert ("order.placed", "deferred") not in house.counts.settled
        house.place.clock.move(1.0)
        await house.soon(lambda: len(runs) == 2)
        assert runs == [1, 2]


async def test_a_call_is_held_no_longer_than_its_event_may_be_handled(start: Any) -> None:
    house, runs = await start(""), Runs()
    async with refunding(house, runs, handling_time=0.2) as agent:
        await agent.ctx.publish("order.placed", {"order": "7"})
        async with asyncio.timeout(15):  # else it would be held for 25 s, and others be handed the event meanwhile
            await house.deferred(1)
        assert runs == [1]
        assert isinstance(runs.errors[0], ApprovalPending)


async def test_what_an_agent_does_after_its_event_is_held_as_if_there_were_none(start: Any) -> None:
    house = await start("hold: 20s")
    tokens: list[str] = []
    agent = house.agent()

    @agent.on("order.*")
    async def refund(ctx: Ctx, event: Event) -> None:
        tokens.append(ctx.token)
        assert house.desk.hands.of(ctx.token.encode(), Whose("worker", "w1"), 0.0)

    async with agent, agent.workflow("w1") as ctx:
        await ctx.publish("order.placed", {"order": "7"})
        await house.soon(lambda: ("order.placed", "success") in house.counts.settled)
        assert house.desk.hands.of(tokens[0].encode(), Whose("worker", "w1"), 0.0) == ()


async def test_an_agent_that_takes_events_over_http_is_treated_alike(start: Any) -> None:
    house = await start()
    service = event_service(house.mesh)
    taking = await service.open(ev.SubscribeRequest(topic="order.*", agent="researcher", credit=4))
    async with house.agent("shop") as shop:
        await shop.ctx.publish("order.placed", {"order": "7"})
    for times in range(1, 12):
        found = await service.next(taking, 10.0)
        assert found is not None
        assert found.attempt == 1
        assert (await refund(house, found.context.token)).status == 428
        assert await service.settled(ev.SettleRequest(delivery=found.delivery, verdict=ev.VERDICT_RETRY))
        await house.deferred(times)
        house.place.clock.move(KEEP_S)
    await decide(house.plane)
    found = await service.next(taking, 10.0)
    assert found is not None
    assert (found.attempt, (await refund(house, found.context.token)).status) == (1, 200)
    assert await service.settled(ev.SettleRequest(delivery=found.delivery, verdict=ev.VERDICT_SUCCESS))
    assert len(house.tool.got) == 1
    await service.close(taking)
    for record in house.plane.calls:
        record.call.holding = None  # which the harness keeps
    gc.collect()
    assert not house.desk.hands._by_token
    assert not house.desk.hands._by_whose


async def refund(house: House, token: str) -> Message:
    fields = b"host: localhost\r\ncontent-type: application/json\r\nx-meshd-context: %s\r\n" % token.encode()
    body = b'{"order": "7"}'
    request = b"POST /billing/refunds HTTP/1.1\r\n" + fields + b"content-length: %d\r\n\r\n" % len(body) + body
    found: Message = await house.plane.fetch(request)
    return found


# After five answers with a 500 its breaker would be open.
@pytest.mark.parametrize(("answer", "times"), [(b"500 Internal Server Error", 4), (b"428 Precondition Required", 12)])
async def test_an_agent_that_is_pushed_events_is_treated_alike(
    start: Any, upstream: Any, answer: bytes, times: int
) -> None:
    got: list[tuple[bytes, int]] = []
    house: House | None = None

    async def agent(peer: Any) -> None:
        while True:
            asked = await peer.request()
            assert house is not None
            told = await refund(house, asked.get(codec.HEADER_CONTEXT).decode())
            got.append((asked.get(b"meshd-event-attempt"), told.status))
            peer.reply(b"", status=b"204 No Content" if told.status == 200 else answer)

    port = (await upstream(agent)).port
    clerk = f'clerk: {{url: "http://127.0.0.1:{port}", kind: agent}}, '
    house = await start(more='subscriptions: [{topic: "order.*", to: clerk, group: clerk}]\n', upstreams=clerk)
    pushing = Pushing(house.mesh)
    pushing.take(house.mesh.policy)
    await until(lambda: all(push._subscription for push in pushing._pushes.values()))
    async with house.agent("shop") as shop, shop.workflow("w7") as ctx:
        await ctx.publish("order.placed", {"order": "7"})
    for at in range(1, times):
        await house.deferred(at)
        house.place.clock.move(KEEP_S)
    await house.deferred(times)
    await decide(house.plane)
    await house.soon(lambda: ("order.placed", "success") in house.counts.settled)
    assert got == [(b"1", 428)] * times + [(b"1", 200)]
    assert house.tool.got == [b'{"order": "7"}']
    await pushing.end(0)


async def test_an_event_whose_push_a_person_must_allow_waits_too(start: Any, upstream: Any) -> None:
    got: list[bytes] = []

    async def agent(peer: Any) -> None:
        while True:
            got.append((await peer.request()).get(b"meshd-event-attempt"))
            peer.reply(b"", status=b"204 No Content")

    port = (await upstream(agent)).port
    clerk = f'clerk: {{url: "http://127.0.0.1:{port}", kind: agent}}, '
    more = 'subscriptions: [{topic: "order.*", to: clerk, group: clerk}]\n'
    house = await start(more=more, upstreams=clerk, kind="agent")
    pushing = Pushing(house.mesh)
    pushing.take(house.mesh.policy)
    await until(lambda: all(push._subscription for push in pushing._pushes.values()))
    async with house.agent("shop") as shop, shop.workflow("w7") as ctx:
        await ctx.publish("order.placed", {"order": "7"})
    for at in range(1, 12):
        await house.deferred(at)
        house.place.clock.move(KEEP_S)
    await house.deferred(12)
    assert got == []
    await decide(house.plane)
    await house.soon(lambda: ("order.placed", "success") in house.counts.settled)
    assert got == [b"1"]
    await pushing.end(0)
