"""How a supervisor is reached: an agent by the sidecar itself, an address over HTTP, a topic by the bus."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from meshd.approvals.desk import Flooded, NotAllowed
from meshd.approvals.holding import Holding
from meshd.approvals.question import Question
from meshd.approvals.state import State
from meshd.engines.bus_port import Event, EventMalformed, Verdict
from meshd.engines.port import StoreError
from meshd.proxy.errand import ask
from meshd.refusal import Refused
from meshd.supervisor.asking import Asker, Unreachable
from meshd.supervisor.story import encode
from meshd.trace.kinds import SUPERVISED

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.approvals.desk import Desk
    from meshd.engines.bus_port import Bus, Subscription
    from meshd.policy.compiled import Policy
    from meshd.policy.model import SupervisorSection
    from meshd.proxy.proxy import Proxy
    from meshd.telemetry.telemetry import Telemetry
    from meshd.turns.supervision import Story

PATH: Final = "/supervise"
"""Of the POST to an agent: one with a session has a tool of this name."""
ANSWERS: Final = ".answers"
"""Follows the topic to make that of the answers."""
GROUP: Final = "meshd-supervisor"
ANSWER_BYTES_MAX: Final = 1 << 20
PEOPLE_GIVE: Final = 20
"""Turns, where people allow a workflow to go on."""


def supervisor_of(proxy: Proxy, bus: Any, telemetry: Telemetry, desk: Desk, here: Callable[[], str]) -> Asker:
    """Return who asks whom the policy in force names. `here` is the name of this sidecar in its store."""

    def told(way: str, result: str, story: Story) -> None:
        counts = telemetry.tally.supervisor_asked
        counts[way, result] = counts.get((way, result), 0) + 1
        trace = telemetry.provenance.trace
        if trace is not None:
            workflow = story.workflow or story.account
            trace.note(SUPERVISED, workflow, (way, result), agent=story.source, target=story.target, call=story.call_id)

    ways: dict[str, Any] = {
        "agent": Agent(proxy),
        "url": Address(),
        "topic": Topic(bus, here),
        "people": People(desk, lambda: proxy.policy),
    }
    return Asker(lambda: proxy.policy.supervisor, ways, told)


class Agent:
    """An upstream of kind agent."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def ask(self, section: SupervisorSection, story: Story) -> bytes:
        """See `meshd.supervisor.asking.Way`."""
        assert section.agent is not None
        try:
            answered = await ask(
                self._proxy, section.agent, PATH, encode(story), errand="supervisor", timeout_s=section.timeout
            )
        except Refused as refused:
            raise Unreachable(f"{section.agent}: {refused.message}") from None
        if answered.status != 200:
            raise Unreachable(f"{section.agent} answered with status {answered.status}")
        return answered.body


class Address:
    """An address over HTTP."""

    async def ask(self, section: SupervisorSection, story: Story) -> bytes:
        """See `meshd.supervisor.asking.Way`."""
        # Not at the start: most sidecars never ask anybody.
        import aiohttp

        assert section.url is not None
        timeout = aiohttp.ClientTimeout(total=section.timeout)
        headers = {"content-type": "application/json"}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as client,
                client.post(section.url, data=encode(story), headers=headers, allow_redirects=False) as reply,
            ):
                body = await reply.content.read(ANSWER_BYTES_MAX + 1)
                # Read as far as it goes: a reply comes in pieces.
                while len(body) <= ANSWER_BYTES_MAX and (piece := await reply.content.read(ANSWER_BYTES_MAX)):
                    body += piece
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"{section.url}: {error}") from None
        if reply.status != 200:
            raise Unreachable(f"{section.url} answered with status {reply.status}")
        if len(body) > ANSWER_BYTES_MAX:
            raise Unreachable(f"{section.url} answered with more than {ANSWER_BYTES_MAX} bytes")
        return body


class Topic:
    """A topic of the bus: the story is published there, the answer is an event on `TOPIC.answers` that it has caused.

    What the agents of the story say there is passed over: nobody decides about itself.
    """

    def __init__(self, bus: Bus, here: Callable[[], str]) -> None:
        self._bus = bus
        self._here = here
        self._waiting: dict[str, tuple[asyncio.Future[bytes], frozenset[str]]] = {}
        """Questions that are open, and who may not answer them."""
        self._listeners: dict[str, asyncio.Task[None]] = {}

    async def ask(self, section: SupervisorSection, story: Story) -> bytes:
        """See `meshd.supervisor.asking.Way`."""
        topic = section.topic
        assert topic is not None
        question = f"{story.call_id}-{uuid.uuid4().hex[:8]}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        parties = {story.source, story.target, *story.path}
        parties.update(name for edge in story.edges for name in (edge.source, edge.target))
        self._waiting[question] = answer, frozenset(parties)
        try:
            # Joined first, so that no answer can be too early.
            await self._listen(topic)
            event = Event(
                topic,
                source="meshd:supervisor",
                id=question,
                type="meshd.workflow.exceeded",
                subject=story.workflow,
                data=encode(story),
                correlation_id=story.workflow,
            )
            await self._bus.publish([event])
            return await answer
        except (StoreError, EventMalformed) as error:
            raise Unreachable(f"topic {topic}: {error}") from None
        finally:
            del self._waiting[question]
            if not self._waiting:
                for listener in self._listeners.values():
                    listener.cancel()
                self._listeners.clear()

    async def _listen(self, topic: str) -> None:
        listener = self._listeners.get(topic)
        if listener is not None and not listener.done():
            return
        # Each sidecar hears them all: in one group, an answer could go to another sidecar that waits for its own.
        answers = await self._bus.subscribe(topic + ANSWERS, f"{GROUP}-{self._here()}")
        self._listeners[topic] = asyncio.get_running_loop().create_task(self._hear(answers))

    async def _hear(self, answers: Subscription) -> None:
        try:
            while True:
                delivery = await answers.next()
                await answers.settle(delivery, Verdict.SUCCESS)
                event = delivery.event
                answer, parties = self._waiting.get(event.causation_id, (None, frozenset()))
                # An agent may put a slash and a word of its own behind its name.
                if answer is not None and not answer.done() and event.source.partition("/")[0] not in parties:
                    answer.set_result(event.data)
        except StoreError as error:
            for answer, _ in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Unreachable(f"the bus: {error}"))
        finally:
            await answers.close()


class People:
    """Those who approve: the question stands at the approvals' desk, whose answer is yes or no.

    A yes is room for `PEOPLE_GIVE` more turns, a no stops the workflow. The question is the same for the workflow, the
    detector and the edge: a call that comes again finds the answer that was given meanwhile.
    """

    def __init__(self, desk: Desk, policy: Callable[[], Policy]) -> None:
        self._desk = desk
        self._policy = policy

    async def ask(self, section: SupervisorSection, story: Story) -> bytes:
        """See `meshd.supervisor.asking.Way`."""
        holding = Holding()
        try:
            approval = await self._desk.obtain(self._question(story), section.timeout, holding)
        except NotAllowed as refused:
            if refused.state is not State.DENIED:
                raise TimeoutError from None
            reasons = [one.reason for one in refused.approval.decisions if not one.is_allowed]
            return json.dumps({"action": "stop", "reason": "; ".join(reasons)}).encode()
        except (Flooded, StoreError) as error:
            raise Unreachable(f"the approvals: {error}") from None
        self._desk.settled(approval.id, story.call_id, is_unsent=False, outcome="continue")
        who = ", ".join(one.approver for one in approval.decisions if one.is_allowed)
        return json.dumps({"action": "continue", "turns": PEOPLE_GIVE, "reason": f"allowed by {who}"}).encode()

    def _question(self, story: Story) -> Question:
        policy = self._policy()
        asked = {
            "detector": story.detector,
            "source": story.source,
            "target": story.target,
            "workflow": story.workflow or story.account,
        }
        return Question(
            workflow=story.workflow,
            agent=story.source,
            kind="workflow",
            target=story.target,
            operation=f"go on for {PEOPLE_GIVE} turns",
            arguments=json.dumps(asked, sort_keys=True, separators=(",", ":")).encode(),
            approvers=tuple(sorted(policy.approvers)),
            owner=policy.owner,
            why=story.why,
            rule="on_exceeded",
            call=story.call_id,
        )
