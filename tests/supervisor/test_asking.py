"""A supervisor that answers, is slow, dead, or talks nonsense: over real sockets and a real bus."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Event
from meshd.policy.model import SupervisorSection
from meshd.supervisor.asking import Asker, Unreachable
from meshd.supervisor.ways import Address, Agent, Topic
from meshd.turns.supervision import Story, Verdict
from tests.ports import free_port
from tests.proxy.harness import plain_policy, until
from tests.supervisor.test_answer import STORY, vars_of

if TYPE_CHECKING:
    from meshd.supervisor.asking import Way

GO_ON = b'{"action": "continue", "turns": 5, "reason": "fine"}'
STOP = b'{"action": "stop", "reason": "no"}'


def story(**fields: Any) -> Story:
    return Story(**{**vars_of(STORY), **fields})


class Told:
    """Who counts."""

    def __init__(self) -> None:
        self.results: list[tuple[str, str]] = []

    def __call__(self, way: str, result: str, story: Story) -> None:
        assert story.workflow
        self.results.append((way, result))


def asker(way: Way, told: Told, **section: Any) -> Asker:
    name = next(iter(section))
    made = SupervisorSection.model_validate(section)
    return Asker(lambda: made, {name: way}, told)


def answers(body: bytes, status: int = 200) -> Any:
    async def script(peer: Any) -> None:
        request = await peer.request()
        assert json.loads(request.body)["story"]["workflow"] == "wf-1"
        peer.send(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    return script


async def test_an_agent_of_the_policy_answers(mesh: Any, upstream: Any) -> None:
    up = await upstream(answers(GO_ON))
    one = await mesh(plain_policy(up.port, kind="agent"))
    told = Told()
    verdict = await asker(Agent(one.proxy), told, agent="up").ask(STORY)
    assert verdict == Verdict(action="continue", turns=5, reason="fine", by="up")
    assert told.results == [("agent", "continue")]
    assert up.received.startswith(b"POST /supervise ")


async def test_an_address_answers(upstream: Any) -> None:
    up = await upstream(answers(STOP))
    told = Told()
    verdict = await asker(Address(), told, url=f"http://127.0.0.1:{up.port}/ask").ask(STORY)
    assert verdict is not None
    assert (verdict.action, verdict.reason) == ("stop", "no")
    assert up.received.startswith(b"POST /ask ")


@pytest.mark.parametrize(
    ("body", "status", "result"),
    [(b"hm", 200, "nonsense"), (GO_ON, 500, "unreachable"), (GO_ON, 302, "unreachable")],
)
async def test_an_address_that_gives_no_answer(upstream: Any, body: bytes, status: int, result: str) -> None:
    up = await upstream(answers(body, status))
    told = Told()
    assert await asker(Address(), told, url=f"http://127.0.0.1:{up.port}/").ask(STORY) is None
    assert told.results == [("url", result)]


async def test_nobody_is_there() -> None:
    told = Told()
    assert await asker(Address(), told, url=f"http://127.0.0.1:{free_port()}/").ask(STORY) is None
    assert told.results == [("url", "unreachable")]


async def test_one_that_is_slow_has_not_answered(upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        await peer.reader.read()

    up = await upstream(script)
    told = Told()
    assert await asker(Address(), told, url=f"http://127.0.0.1:{up.port}/", timeout="100ms").ask(STORY) is None
    assert told.results == [("url", "late")]


class Slow:
    """A way whose answer the test gives."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[bytes]] = []

    async def ask(self, section: SupervisorSection, story: Story) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        return await answer


async def test_calls_of_one_workflow_share_the_question() -> None:
    way, told = Slow(), Told()
    one = asker(way, told, url="http://127.0.0.1:1")
    tasks = [asyncio.ensure_future(one.ask(story(call_id=f"c-{number}"))) for number in range(5)]
    other = asyncio.ensure_future(one.ask(story(workflow="wf-2", account="workflow/wf-2")))
    await until(lambda: len(way.asked) == 2)
    way.asked[0].set_result(GO_ON)
    way.asked[1].set_result(STOP)
    found = await asyncio.gather(*tasks)
    assert [verdict and verdict.action for verdict in found] == ["continue"] * 5
    assert told.results == [("url", "continue"), ("url", "stop")]
    verdict = await other
    assert verdict is not None
    assert verdict.action == "stop"


async def test_an_answer_for_one_call_is_not_given_to_another() -> None:
    way, told = Slow(), Told()
    one = asker(way, told, url="http://127.0.0.1:1")
    first, second = asyncio.ensure_future(one.ask(STORY)), asyncio.ensure_future(one.ask(story(call_id="c-2")))
    await until(lambda: len(way.asked) == 1)
    way.asked[0].set_result(b'{"action": "finish", "answer": "of the first"}')
    await until(lambda: len(way.asked) == 2)
    way.asked[1].set_result(STOP)
    assert [verdict and verdict.action for verdict in await asyncio.gather(first, second)] == ["finish", "stop"]


async def test_whoever_hangs_up_does_not_keep_the_others_waiting() -> None:
    way, told = Slow(), Told()
    one = asker(way, told, url="http://127.0.0.1:1")
    first, second = asyncio.ensure_future(one.ask(STORY)), asyncio.ensure_future(one.ask(story(call_id="c-2")))
    await until(lambda: len(way.asked) == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    way.asked[0].set_result(GO_ON)
    verdict = await second
    assert verdict is not None
    assert verdict.action == "continue"
    assert told.results == [("url", "continue")]
    third = asyncio.ensure_future(one.ask(STORY))
    await until(lambda: len(way.asked) == 2)
    way.asked[1].set_result(STOP)
    assert await third is not None


async def test_a_topic_is_answered_by_an_event_that_it_caused() -> None:
    bus = MemoryBus()
    try:
        heard = await bus.subscribe("ops.loops", "ops")
        told = Told()
        task = asyncio.ensure_future(asker(Topic(bus, lambda: "here"), told, topic="ops.loops").ask(STORY))
        question = (await heard.next()).event
        assert json.loads(question.data)["story"]["workflow"] == "wf-1"
        said = {"topic": "ops.loops.answers", "data": GO_ON, "causation_id": question.id}
        await bus.publish([
            Event(source="writer", id="1", **said),  # a party to it: nobody decides about itself
            Event(source="writer/in-another-voice", id="1", **said),
            Event(source="ops", id="2", **{**said, "causation_id": "another question"}),
            Event(source="ops", id="3", **{**said, "data": STOP}),
        ])  # fmt: skip
        verdict = await task
        assert verdict is not None
        assert verdict.action == "stop"
        assert told.results == [("topic", "stop")]
    finally:
        await bus.close()


async def test_sidecars_that_share_a_bus_each_get_their_own_answer() -> None:
    bus, told = MemoryBus(), Told()
    try:
        heard = await bus.subscribe("ops.loops", "ops")
        names, tasks, questions = ("one", "two", "three"), [], []
        for name in names:
            way = Topic(bus, lambda name=name: name)  # type: ignore[misc]
            tasks.append(asyncio.ensure_future(asker(way, told, topic="ops.loops", timeout=5).ask(STORY)))
            questions.append((await heard.next()).event)
        # All wait by now, and whose answer comes first is anybody's guess.
        for number, question in enumerate(reversed(questions)):
            answer = Event("ops.loops.answers", "ops", f"{number}", data=GO_ON, causation_id=question.id)
            await bus.publish([answer])
        assert [verdict and verdict.action for verdict in await asyncio.gather(*tasks)] == ["continue"] * 3
    finally:
        await bus.close()


async def test_a_bus_that_is_closed_is_nobody_to_ask() -> None:
    bus = MemoryBus()
    await bus.close()
    told = Told()
    assert await asker(Topic(bus, lambda: "here"), told, topic="ops.loops").ask(STORY) is None
    assert told.results == [("topic", "unreachable")]


async def test_without_on_exceeded_nobody_is_asked() -> None:
    told = Told()
    assert await Asker(lambda: None, {}, told).ask(STORY) is None
    assert told.results == []


def test_a_way_says_why_it_cannot_be_gone() -> None:
    assert str(Unreachable("topic x: closed")) == "topic x: closed"
