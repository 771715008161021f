"""Supervisors of agents that go in circles by events alone: asked as for calls, with the same answers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Reader
from meshd_sdk import Agent, Ctx, Event
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.end_to_end.supervisors import STOP, WAYS, Boss, Supervised, making

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

AGAIN = {"action": "continue", "turns": 4, "reason": "nearly done"}
ELSEWHERE = {"action": "redirect", "target": "desk.stuck", "reason": "people look there"}
ANSWER = {"action": "finish", "answer": {"say": "use last year's"}, "reason": "enough"}
DOCUMENT = """\
agent: main
limits: {{hops: 200{limits}}}
upstreams: {{boss: {{kind: agent, session: true}}}}
on_exceeded: {{{named}, timeout: {timeout}}}
rules:
  - {{name: hush, match: {{topic: "secret.*"}}, deny: nobody}}
{rules}
"""
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "indigo", "juniper")
ASKING = {"say": "what do you mean?"}


class World(Supervised):
    """A sidecar, two agents that answer each other's events, and a supervisor."""

    def __init__(self, sidecar: Sidecar, way: str) -> None:
        super().__init__(sidecar, way)
        self.heard: list[tuple[str, Any, dict[str, str]]] = []
        self.refused: asyncio.Queue[Any] = asyncio.Queue()
        self.stuck: asyncio.Queue[Event] = asyncio.Queue()
        self.says: Callable[[int], Any] = lambda _: ASKING
        self.ping: Agent

    async def start(self, timeout: str = "20s", limits: str = "", rules: str = "") -> Boss:
        named = "agent: boss" if self.way == "agent" else "topic: ops.loops"
        document = DOCUMENT.format(named=named, timeout=timeout, limits=limits, rules=rules)
        await asyncio.to_thread(self.sidecar.start, document)
        self.ping = self._agent("ping", "pong")
        desk = Agent("desk", api=self.api, environ={}, grace=0)

        @desk.on("desk.stuck")
        async def on_stuck(event: Event) -> None:
            self.stuck.put_nowait(event)

        for one in (self.ping, self._agent("pong", "ping"), desk, self.boss.agent(self.api)):
            await self.stack.enter_async_context(one)
        return self.boss

    def _agent(self, name: str, other: str) -> Agent:
        made = Agent(name, api=self.api, environ={}, grace=0)

        @made.on(f"to.{name}")
        async def heard(ctx: Ctx, event: Event) -> None:
            self.heard.append((name, event.data, dict(event.extensions)))
            if event.data == ANSWER["answer"]:
                return
            try:
                await ctx.publish(f"to.{other}", self.says(len(self.heard)))
            except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
                await self.refused.put(error)

        return made

    async def begin(self) -> None:
        async with self.ping.workflow("runaway") as ctx:
            await ctx.publish("to.pong", self.says(0))

    async def stopped(self) -> Any:
        """Return by what the first of them was refused."""
        async with asyncio.timeout(60):
            return await self.refused.get()


@pytest.fixture
async def make(sidecar: Sidecar) -> AsyncIterator[Callable[[str], World]]:
    async with making(World, sidecar) as make:
        yield make


@pytest.mark.parametrize("way", WAYS)
async def test_it_gives_room_and_then_stops(make: Callable[[str], World], way: str) -> None:
    world = make(way)
    boss = await world.start()
    rounds: list[int] = []

    async def decide(story: dict[str, Any]) -> Any:
        boss.stories.append(story)
        rounds.append(len(world.heard))
        return AGAIN if len(boss.stories) == 1 else STOP

    boss.decide = decide  # type: ignore[method-assign]
    await world.begin()
    error = await world.stopped()
    assert (error.reason, "it will never end" in str(error)) == ("loop", True)
    assert rounds[1] - rounds[0] == AGAIN["turns"], "so many went on, and no more"
    story = boss.stories[0]
    source = story["source"]
    assert {source, story["target"].removeprefix("to.")} == {"ping", "pong"}
    assert (story["workflow"], story["operation"]) == ("runaway", f"PUBLISH {story['target']}")
    assert story["actions"] == ["continue", "redirect", "finish", "stop"]
    assert len(story["payloads"]) == 1
    # The workflow is stopped: nobody is asked again, about nothing.
    async with world.ping.workflow("runaway") as ctx:
        with pytest.raises(Exception, match="has stopped this task"):
            await ctx.publish("to.other", {"say": "something new"})
    assert len(boss.stories) == 2
    assert (await world.asked("continue"), await world.asked("stop")) == (1, 1)
    assert await asyncio.to_thread(world.sidecar.metric, "meshd_turns_total", decision="held") == 2
    events = list(Reader(world.sidecar.home / DIRECTORY).events("runaway"))
    told = [event.facts["result"] for event in events if event.kind == "supervised"]
    assert told == ["continue", "stop"]
    assert [event.facts["method"] for event in events if event.kind == "refused"] == ["PUBLISH"] * 2
    # What meshd asks on a topic is an event like any other: counted, and in the trace.
    counted = await asyncio.to_thread(world.sidecar.metric, "meshd_events_published_total", topic="ops.loops")
    asked = [event for event in events if event.kind == "published" and event.facts["topic"] == "ops.loops"]
    assert (counted, len(asked)) == ((2, 2) if way == "topic" else (0, 0))
    assert all(event.payload.agent == "meshd:supervisor" for event in asked)


@pytest.mark.parametrize("way", WAYS)
async def test_it_sends_the_event_elsewhere(make: Callable[[str], World], way: str) -> None:
    world = make(way)
    boss = await world.start()
    boss.answer = ELSEWHERE
    await world.begin()
    async with asyncio.timeout(60):
        event = await world.stuck.get()
    assert (event.topic, event.data, event.workflow) == ("desk.stuck", ASKING, "runaway")
    assert (world.refused.empty(), await world.asked("redirect")) == (True, 1)


@pytest.mark.parametrize("target", ["secret.plans", "no topic"])
async def test_not_where_it_may_not_go(make: Callable[[str], World], target: str) -> None:
    world = make("agent")
    boss = await world.start()
    boss.answer = ELSEWHERE | {"target": target}
    await world.begin()
    error = await world.stopped()
    assert "What the supervisor answered could not be done" in str(error)
    assert await world.asked("redirect") == 1


@pytest.mark.parametrize("way", WAYS)
async def test_it_says_something_in_place_of_the_agent(make: Callable[[str], World], way: str) -> None:
    world = make(way)
    boss = await world.start()
    boss.answer = ANSWER
    await world.begin()
    await asyncio.to_thread(until, lambda: world.heard and world.heard[-1][1] == ANSWER["answer"], "its answer")
    assert world.heard[-1][2] == {"meshdsupervisor": "boss" if way == "agent" else "ops.loops"}
    assert (world.refused.empty(), await world.asked("finish")) == (True, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("answer", "result"), [(None, "late"), ("go on, I guess", "nonsense")])
async def test_one_that_is_slow_or_talks_nonsense(
    make: Callable[[str], World], way: str, answer: Any, result: str
) -> None:
    world = make(way)
    boss = await world.start(timeout="700ms" if answer is None else "10s")
    boss.answer = answer
    await world.begin()
    error = await world.stopped()
    assert "The supervisor was asked" in str(error)
    assert (len(boss.stories), await world.asked(result)) == (1, 1)


async def test_all_else_goes_on_while_it_thinks(make: Callable[[str], World]) -> None:
    world = make("agent")
    boss = await world.start()
    boss.answer = None
    await world.begin()
    await asyncio.to_thread(until, lambda: boss.stories, "the question")
    held = boss.stories[0]["source"]
    # Whoever waits for it publishes elsewhere, and handles what comes there.
    async with world.ping.workflow("other") as ctx:
        await ctx.publish("desk.stuck", {"say": "not about that"})
    async with asyncio.timeout(60):
        assert (await world.stuck.get()).workflow == "other"
    assert world.refused.empty()
    boss.answer = STOP
    boss.ended.set()
    assert "it will never end" in str(await world.stopped())
    assert held in ("ping", "pong")


LAX = "  - {name: lax, match: {kind: event, operation: 'PUBLISH *'}, turns: {reentry: 99, edge: 900, workflow: 900}}"


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_asked_where_an_event_comes_back_too_often(make: Callable[[str], World], way: str) -> None:
    """What its publisher's policy lets out, its handler's keeps back, unless the supervisor says otherwise."""
    world = make(way)
    boss = await world.start(rules=LAX)
    world.says = lambda n: {"say": f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} {WORDS[(n * 7) % 10]}"}
    heard: list[int] = []

    async def decide(story: dict[str, Any]) -> Any:
        boss.stories.append(story)
        heard.append(len(world.heard))
        return AGAIN if len(boss.stories) == 1 else STOP

    boss.decide = decide  # type: ignore[method-assign]
    await world.begin()
    await asyncio.to_thread(until, lambda: len(boss.stories) == 2, "both questions")
    story = boss.stories[0]
    assert (story["operation"], story["detector"]) == (f"HANDLE {story['target']}", "reentry")
    assert story["actions"] == ["continue", "stop"]
    assert heard[1] - heard[0] == AGAIN["turns"]

    def results() -> list[str]:
        events = Reader(world.sidecar.home / DIRECTORY).events("runaway")
        return [event.facts["result"] for event in events if event.kind == "handled"]

    await asyncio.to_thread(until, lambda: "dead_letter" in results(), "the dead letter")
    assert len(boss.stories) == 2, "the workflow is stopped, and nobody is asked again"


async def test_who_has_no_session_waits_for_the_answer(make: Callable[[str], World]) -> None:
    world = make("agent")
    boss = await world.start()
    boss.answer = ELSEWHERE
    opened = {"content-type": "application/json"}
    url = f"http://{world.api}"
    _, text = await asyncio.to_thread(
        fetch, f"{url}/meshd.v1.ContextService/Open", "POST", opened, b'{"workflow": "runaway"}'
    )
    headers = {"content-type": "text/plain", "x-meshd-context": json.loads(text)["context"]["token"]}
    headers |= {"ce-specversion": "1.0", "ce-source": "main", "ce-type": "tick"}
    for number in range(25):
        named = headers | {"ce-id": f"tick-{number}"}
        status, text = await asyncio.to_thread(fetch, f"{url}/v1/events/ticks", "POST", named, b"tick")
        assert status == 200, text
        if boss.stories:
            break
    async with asyncio.timeout(60):
        event = await world.stuck.get()
    assert (event.topic, event.id, boss.stories[0]["operation"]) == ("desk.stuck", f"tick-{number}", "PUBLISH ticks")
    boss.answer = STOP
    status, text = await asyncio.to_thread(fetch, f"{url}/v1/events/ticks", "POST", headers | {"ce-id": "x"}, b"tick")
    assert (status, "it will never end" in text) == (403, True)
