"""Events through a real sidecar's bus: handled, retried, dropped, shared by a group."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Drop, Event, Retry, current
from tests.sdk.conftest import soon

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Agent]


async def test_an_event_is_handled_in_the_workflow_that_published_it(make: Make) -> None:
    agent, seen = make("listener1"), []

    @agent.on("ev1.task.*")
    async def handle(ctx: Ctx, event: Event) -> None:
        assert current() is ctx.current
        seen.append((ctx.workflow, event.topic, event["n"], event.key, event.source, event.type, event.attempt))
        await ctx.publish("ev1.done", {"n": event["n"]})

    @agent.on("ev1.done")
    def done(event: Event) -> None:  # in a thread
        seen.append(("done", event.workflow, event.data))

    async with agent, agent.workflow("wf-ev1") as ctx:
        published = await ctx.publish("ev1.task.assigned", {"n": 3}, key="k", type="t")
        assert len(published.sequence) == 20
        await soon(lambda: len(seen) == 2)
    assert seen[0] == ("wf-ev1", "ev1.task.assigned", 3, "k", "listener1", "t", 1)
    assert seen[1] == ("done", "wf-ev1", {"n": 3})


async def test_one_id_is_published_once(make: Make) -> None:
    agent, seen = make("listener2"), []

    @agent.on("ev2")
    async def handle(event: Event) -> None:
        seen.append(event.id)

    async with agent, agent.workflow() as ctx:
        first = await ctx.publish("ev2", 1, id="one")
        again = await ctx.publish("ev2", 2, id="one")
        assert (first.is_duplicate, again.is_duplicate) == (False, True)
        assert first.sequence == again.sequence
        await ctx.publish("ev2", 3, id="two")
        await soon(lambda: "two" in seen)
    assert seen == ["one", "two"]


async def test_a_handler_that_raises_gets_the_event_again_and_drop_ends_it(make: Make) -> None:
    agent, seen = make("listener3"), []

    @agent.on("ev3")
    async def handle(event: Event) -> None:
        seen.append((event.data, event.attempt))
        if event.data == "drop":
            raise Drop("not wanted")
        if event.attempt == 1:
            raise Retry("busy", after=0.01)
        if event.attempt == 2:
            raise ValueError("broken")

    async with agent, agent.workflow() as ctx:
        await ctx.publish("ev3", "drop")
        await ctx.publish("ev3", "again")
        await soon(lambda: ("again", 3) in seen)
        await ctx.publish("ev3", "last", id="last")
        await soon(lambda: ("last", 3) in seen)
    assert [attempt for data, attempt in seen if data == "drop"] == [1]


async def test_a_group_shares_and_two_groups_both_get(make: Make) -> None:
    one, two, other = make("member4"), make("member4"), make("other4")
    seen: dict[str, list[Any]] = {"one": [], "two": [], "other": []}
    for agent, name in ((one, "one"), (two, "two"), (other, "other")):

        @agent.on("ev4")
        async def handle(event: Event, name: str = name) -> None:
            seen[name].append(event.data)

    async with one, two, other, other.workflow() as ctx:
        for at in range(20):
            await ctx.publish("ev4", at)
        await soon(lambda: len(seen["other"]) == 20 and len(seen["one"]) + len(seen["two"]) == 20)
    assert sorted(seen["one"] + seen["two"]) == list(range(20))


async def test_far_more_events_than_credit_are_all_handled_within_it(make: Make) -> None:
    agent, seen, running, most = make("listener5", credit=3), set(), 0, 0

    @agent.on("ev5")
    async def handle(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        seen.add(event.data)

    async with agent, agent.workflow() as ctx:
        await asyncio.gather(*[ctx.publish("ev5", at) for at in range(200)])
        await soon(lambda: len(seen) == 200)
    assert most <= 3


async def test_what_runs_is_finished_and_settled_when_the_agent_ends(make: Make) -> None:
    agent, began, done = make("listener6"), asyncio.Event(), []

    @agent.on("ev6")
    async def handle(event: Event) -> None:
        began.set()
        await asyncio.sleep(0.05)
        done.append((event.data, event.attempt))

    async with make("publisher6") as publisher:
        async with agent:
            await publisher.ctx.publish("ev6", 1)
            await asyncio.wait_for(began.wait(), 20)
        assert done == [(1, 1)]
        async with agent:
            await publisher.ctx.publish("ev6", 2)
            await soon(lambda: len(done) == 2)
    assert done == [(1, 1), (2, 1)]  # the first never came again


@pytest.mark.parametrize("topic", ["", "a b", ".", "a..b", "a.>.b", "x" * 256, "ü", 3])
async def test_a_topic_that_is_none_is_refused_as_it_is_declared(make: Make, topic: Any) -> None:
    with pytest.raises(ValueError, match="a topic is"):
        make("listener7").on(topic)


@pytest.mark.parametrize("after", [-1, float("nan"), 1e12])
def test_a_retry_after_no_number_of_seconds(after: float) -> None:
    with pytest.raises(ValueError, match="after is"):
        Retry(after=after)


async def test_a_topic_that_cannot_be_published_to_is_said_to_be(make: Make) -> None:
    from meshd_sdk.errors import MeshError

    async with make("publisher8") as agent:
        for topic in ("", "a.*", "a b"):
            with pytest.raises(MeshError):
                await agent.ctx.publish(topic, 1)
        with pytest.raises(TypeError, match="cannot be written as JSON"):
            await agent.ctx.publish("ev8", object())
        with pytest.raises(ValueError, match="JSON"):
            await agent.ctx.publish("ev8", float("nan"))


@pytest.mark.parametrize(
    "starts",
    [
        {"starts_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - what it is refused for
        {"starts_at": float("nan")},
        {"starts_at": -1.0},
        {"starts_at": 1e300},
        {"starts_after": "x"},
        {"starts_after": "-1"},
        {"starts_after": "1" * 21},
        {"starts_after": 17},
        {"starts_after": "1", "starts_at": 1.0},
        {"starts_after": "1", "from_oldest": True},
        {"starts_at": 0, "from_oldest": True},
    ],
)
def test_where_no_group_begins_is_an_error_at_once(make: Make, starts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="starts_"):
        make("nowhere").on("ev", **starts)


async def test_a_group_begins_where_its_agent_says(make: Make) -> None:
    async with make("early20") as early:
        done = [await early.ctx.publish("ev20", n) for n in range(3)]
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    for number, starts in enumerate(({"starts_after": done[1].sequence}, {"starts_at": hour_ago})):
        late, seen = make("late20"), []

        @late.on("ev20", group=f"late{number}", **starts)  # type: ignore[arg-type]
        async def handle(event: Event, seen: list[Any] = seen) -> None:
            seen.append(event.data)

        async with late:
            await late.ctx.publish("ev20", f"last{number}")
            await soon(lambda seen=seen, last=f"last{number}": last in seen)  # type: ignore[misc]
        assert seen == [[2, "last0"], [0, 1, 2, "last0", "last1"]][number]


@pytest.mark.parametrize(
    ("given", "name"),
    [({"id": 7}, "id"), ({"id": 0}, "id"), ({"key": 7}, "key"), ({"topic": b"t"}, "topic")],
)
async def test_what_is_no_text_is_named(make: Make, given: dict[str, Any], name: str) -> None:
    async with make("listener9") as agent, agent.workflow() as ctx:
        with pytest.raises(TypeError, match=rf"^{name} is a text, not "):
            await ctx.publish(**{"topic": "ev9", "data": 1} | given)
        with pytest.raises(TypeError, match=r"^order is a text, not 7"):
            await ctx.publish("ev9", 1, extensions={"order": 7})  # type: ignore[dict-item]
