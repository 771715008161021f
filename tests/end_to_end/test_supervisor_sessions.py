"""Supervisors that are agents of the SDK: one with a session, and one that hears the topic and publishes its answer."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Event
from meshd_sdk.errors import CallFailed
from tests.end_to_end.sidecar import Sidecar, fetch
from tests.end_to_end.supervisors import CONTINUE, STOP, WAYS, Boss, Supervised, making

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Decide = Callable[[dict[str, Any]], Awaitable[Any]]

STUCK = {"text": "I do not know where the contract is."}
HERE = {"text": "It is in the safe."}
REDIRECT = {"action": "redirect", "target": "archive", "reason": "that one knows"}
FINISH = {"action": "finish", "answer": {"text": "Use last year's."}, "reason": "enough"}


class World(Supervised):
    """A sidecar, two agents that always answer the same, and a supervisor where one is there."""

    def __init__(self, sidecar: Sidecar, way: str) -> None:
        super().__init__(sidecar, way)
        self.called = 0

    async def start(self, timeout: str = "10s", *, is_there: bool = True, **declare: Callable[[Agent], None]) -> Boss:
        """`declare` is told of an agent by its name, before that connects."""
        named = "agent: boss" if self.way == "agent" else "topic: ops.loops"
        document = (
            "agent: lead\n"
            "upstreams:\n"
            "  boss: {kind: agent, session: true}\n"
            "  writer: {kind: agent, session: true}\n"
            "  archive: {kind: agent, session: true}\n"
            f"on_exceeded: {{{named}, timeout: {timeout}}}\n"
        )
        await asyncio.to_thread(self.sidecar.start, document)
        for name, says in (("writer", STUCK), ("archive", HERE)):
            worker = self._worker(name, says)
            declare.get(name, lambda _: None)(worker)
            await self._join(worker)
        if is_there:
            await self._join(self.boss.agent(self.api))
        return self.boss

    def _worker(self, name: str, says: dict[str, str]) -> Agent:
        made = Agent(name, api=self.api, environ={}, grace=0)

        @made.tool
        async def run(task: str) -> dict[str, str]:
            self.called += 1
            return says

        return made

    async def _join(self, agent: Agent) -> None:
        await self.stack.enter_async_context(agent)

    async def post(self) -> tuple[int, Any]:
        headers = {"content-type": "application/json", "x-meshd-workflow": "wf-1"}
        body = json.dumps({"task": "Where is the contract?"}).encode()
        status, text = await asyncio.to_thread(fetch, f"{self.sidecar.url}/writer/run", "POST", headers, body)
        return status, json.loads(text)

    async def until_held(self) -> tuple[int, Any]:
        """Go round three times, and return what the fourth call gets."""
        for _ in range(3):
            assert await self.post() == (200, STUCK)
        return await self.post()


@pytest.fixture
async def make(sidecar: Sidecar) -> AsyncIterator[Callable[[str], World]]:
    async with making(World, sidecar) as make:
        yield make


@pytest.mark.parametrize("way", WAYS)
async def test_it_gives_room_and_then_stops(make: Callable[[str], World], way: str) -> None:
    world = make(way)
    boss = await world.start()
    assert await world.until_held() == (200, STUCK)
    assert (await world.post())[0] == 200
    assert (world.called, len(boss.stories)) == (5, 1)
    story = boss.stories[0]
    assert (story["detector"], story["source"], story["target"]) == ("repetition", "lead", "writer")
    boss.answer = STOP
    status, refusal = await world.post()
    assert (status, "it will never end" in json.dumps(refusal)) == (403, True)
    assert (await world.post())[0] == 403, "the workflow is stopped, and nobody is asked again"
    assert (world.called, len(boss.stories)) == (5, 2)
    assert (await world.asked("continue"), await world.asked("stop")) == (1, 1)


@pytest.mark.parametrize("way", WAYS)
async def test_it_sends_the_call_elsewhere(make: Callable[[str], World], way: str) -> None:
    world = make(way)
    boss = await world.start()
    boss.answer = REDIRECT
    assert await world.until_held() == (200, HERE)
    assert (world.called, await world.asked("redirect")) == (4, 1)


@pytest.mark.parametrize("way", WAYS)
async def test_it_answers_in_place_of_the_agent(make: Callable[[str], World], way: str) -> None:
    world = make(way)
    boss = await world.start()
    boss.answer = FINISH
    assert await world.until_held() == (200, FINISH["answer"])
    assert (world.called, await world.asked("finish")) == (3, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (None, "late"),
        ("go on, I guess", "nonsense"),
        ({"action": "continue"}, "nonsense"),
        ({"action": "redirect"}, "nonsense"),
        ([CONTINUE], "nonsense"),
    ],
)
async def test_one_that_is_slow_or_talks_nonsense(
    make: Callable[[str], World], way: str, answer: Any, result: str
) -> None:
    world = make(way)
    boss = await world.start(timeout="700ms" if answer is None else "10s")
    boss.answer = answer
    status, refusal = await world.until_held()
    assert (status, "The supervisor was asked" in json.dumps(refusal)) == (403, True)
    assert (world.called, len(boss.stories), await world.asked(result)) == (3, 1, 1)
    assert "so the workflow is stopped" in world.sidecar.log


@pytest.mark.parametrize(("way", "result"), [("agent", "unreachable"), ("topic", "late")])
async def test_one_that_is_not_there(make: Callable[[str], World], way: str, result: str) -> None:
    world = make(way)
    await world.start(timeout="2s", is_there=False)
    assert (await world.until_held())[0] == 403
    assert (world.called, await world.asked(result)) == (3, 1)


async def test_an_agent_that_fails_has_not_answered(make: Callable[[str], World]) -> None:
    world = make("agent")
    boss = await world.start()
    boss.answer = CallFailed("I cannot decide", code="INTERNAL")
    assert (await world.until_held())[0] == 403
    assert (world.called, await world.asked("unreachable")) == (3, 1)


@pytest.mark.parametrize("is_party", [True, False])
async def test_what_is_no_answer_on_the_topic(make: Callable[[str], World], is_party: bool) -> None:
    """One of an agent that goes in circles itself, and one that does not follow from the question."""
    world = make("topic")
    heard: list[Event] = []

    def declare(agent: Agent) -> None:
        @agent.on("ops.loops")
        async def asked(ctx: Ctx, event: Event) -> None:
            heard.append(event)
            await (ctx if is_party else agent.ctx).publish("ops.loops.answers", CONTINUE)

    await world.start(timeout="2s", is_there=False, **{"writer" if is_party else "archive": declare})
    assert (await world.until_held())[0] == 403
    assert (world.called, len(heard), await world.asked("late")) == (3, 1, 1)
