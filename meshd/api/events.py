"""EventService: events for agents that keep no session. HTTP (`meshd.api.event_http`) asks the same object.

Whoever subscribes holds a stream open, and says of each event by its delivery's name what became of it, over any other
connection. When the stream ends, what is unsettled goes to others of the group, marked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.api import session_frames as frames
from meshd.api.event_frames import event_frame
from meshd.api.failing import refused_as
from meshd.api.fields import AGENT, malformed, seconds, shown
from meshd.api.handing import is_held, join, settle, start_of
from meshd.api.keeping_events import publish_all
from meshd.api.publishing import NO_CAUSE, HeldPublication, event_of
from meshd.api.taking import Taking
from meshd.engines.bus_event import SECONDS_MAX
from meshd.engines.bus_port import HANDLING_S, EventMalformed, Verdict
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import events_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from meshd.api.handing import Handed
    from meshd.api.keeping_events import Publication
    from meshd.api.mesh import Mesh
    from meshd.api.publishing import Cause
    from meshd.engines.bus_port import Published

SUBSCRIPTIONS_MAX: Final = 1024
"""Streams that are open at once."""
CREDIT: Final = 16
CREDIT_MAX: Final = 1024
LOOK_S: Final = 1.0
"""How often a stream without news sees whether the sidecar drains."""
_VERDICTS: Final = {events_pb2.VERDICT_SUCCESS: Verdict.SUCCESS, events_pb2.VERDICT_DROP: Verdict.DROP}


def event_service(mesh: Mesh) -> EventService:
    """Return the one of a sidecar, made when it is first asked for."""
    if mesh.events is None:
        mesh.events = EventService(mesh)
    found: EventService = mesh.events
    return found


class EventService:
    """Answers for meshd.v1.EventService."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._takings: dict[str, Taking] = {}
        self._causes: dict[str, Cause] = {}
        """Tokens that were handed out with an event that is not settled, and what follows from that."""

    # ------------------------------------------------------------------ publishing

    async def publish(self, request: events_pb2.PublishRequest) -> events_pb2.PublishResponse:
        """Publish one event. Raises Refused."""
        (done,) = await self.publish_all([request])
        return events_pb2.PublishResponse(event_id=done.id, sequence=done.sequence, is_duplicate=done.is_duplicate)

    async def publish_all(self, requests: Sequence[events_pb2.PublishRequest]) -> list[Published]:
        """Publish events, all or none. Raises Refused, for the first that may not be published."""
        events: list[Publication] = []
        try:
            for index, request in enumerate(requests):
                agent = self.speaker(request.token, request.agent)
                try:
                    made = await event_of(self._mesh, agent, request, self._causes.get(request.token, NO_CAUSE))
                except EventMalformed as error:
                    if len(requests) == 1:
                        raise
                    raise EventMalformed(error.field.replace("event", f"event[{index}]", 1), error.text) from None
                events.append(await made.decided() if isinstance(made, HeldPublication) else made)
            return await publish_all(self._mesh, events)
        except (EventMalformed, StoreError) as error:
            raise refused_as(error) from error

    def speaker(self, token: str, agent: str) -> str:
        """Return who speaks: by the token, else by what is said. Raises Refused."""
        mesh = self._mesh
        if token:
            return mesh.read(token, agent).agent
        agent = agent or mesh.agent
        if AGENT.match(agent) is None:
            raise malformed("agent", "1 to 64 letters, digits, dots, dashes or underscores")
        if not mesh.is_beside(agent):
            raise Refused(
                Reason.NOT_ALLOWED,
                f"No agent {agent} has a place at this sidecar, which stands beside {mesh.agent}: make it an upstream "
                "of kind agent in the policy, or leave the name out.",
            )
        return agent

    # ------------------------------------------------------------------ taking

    async def open(self, request: events_pb2.SubscribeRequest) -> Taking:
        """Join a group; `close` ends it. Raises Refused."""
        mesh = self._mesh
        agent = self.speaker("", request.agent)
        if len(self._takings) >= SUBSCRIPTIONS_MAX:
            raise Refused(Reason.OVERLOADED, f"{SUBSCRIPTIONS_MAX} subscriptions are open, and no more are taken.")
        if request.credit > CREDIT_MAX:
            raise malformed("credit", f"at most {CREDIT_MAX}")
        handling_s = HANDLING_S
        if request.HasField("handling_time"):
            handling_s = seconds("handling_time", request.handling_time)
        try:
            subscription = await join(
                mesh,
                agent,
                request.topic,
                request.group,
                starts_at_oldest=request.starts_at_oldest,
                handling_s=handling_s,
                start=start_of(request),
            )
        except (EventMalformed, StoreError) as error:
            raise refused_as(error) from error
        taking = Taking(mesh, agent, request.topic, subscription, request.credit or CREDIT, handling_s, self._forget)
        self._takings[taking.id] = taking
        return taking

    async def close(self, taking: Taking) -> None:
        """End a stream. Closing twice is fine."""
        self._takings.pop(taking.id, None)
        taking.end()
        await taking.subscription.close()

    async def next(self, taking: Taking, wait_s: float) -> events_pb2.SubscribeResponse | None:
        """Return the next event of a stream; None where there is none within `wait_s`. Raises Refused."""
        try:
            found = await taking.next(wait_s)
        except StoreError as error:
            raise refused_as(error) from error
        if found is None:
            return None
        name, handed = found
        # Behind this nothing is waited for before it is written.
        if not await is_held(self._mesh, taking.subscription, handed):
            taking.pop(name)
            return None
        delivery, context, token = handed.delivery, handed.context, handed.token
        made = events_pb2.SubscribeResponse(
            delivery=name,
            event=event_frame(delivery.event),
            attempt=delivery.attempt,
            may_have_been_handled=delivery.may_have_been_handled,
        )
        if context is not None:
            made.context.CopyFrom(shown(context, token))
            self._causes[token.decode("ascii")] = handed.cause
        return made

    async def subscribe(
        self,
        received: AsyncIterator[events_pb2.SubscribeRequest],
        send: Callable[[events_pb2.SubscribeResponse], Awaitable[None]],
        peer: str,
    ) -> None:
        """Hand out events until the caller goes, or the sidecar drains. Raises Refused."""
        request = await anext(received, None)
        if request is None:
            return
        taking = await self.open(request)
        try:
            while not self._mesh.proxy.is_draining:
                found = await self.next(taking, LOOK_S)
                if found is not None:
                    await send(found)
        finally:
            await self.close(taking)
        raise Refused(Reason.DRAINING, "This sidecar is shutting down: subscribe again.")

    async def settle(self, request: events_pb2.SettleRequest) -> events_pb2.SettleResponse:
        """Say what became of an event. Raises Refused."""
        return events_pb2.SettleResponse(is_counted=await self.settled(request))

    async def settled(self, request: events_pb2.SettleRequest, topic: str = "") -> bool:
        """The same, of a stream of `topic` where that is given; return whether it counted."""
        taking = self._takings.get(request.delivery.partition(".")[0])
        if taking is None or (topic and topic != taking.topic) or not taking.knows(request.delivery):
            raise Refused(
                Reason.UNKNOWN_TARGET,
                "No stream that is open here has handed out this delivery. Where it has ended, the event is handed "
                "out again, marked.",
            )
        wait_s = None
        if request.HasField("retry_after"):
            wait_s = min(frames.seconds(request.retry_after, "retry_after"), SECONDS_MAX)
        unsettled = taking.pop(request.delivery)
        if unsettled is None:
            return False
        handed = unsettled.handed
        verdict: Any = _VERDICTS.get(request.verdict, Verdict.RETRY)
        try:
            counted = await settle(
                self._mesh,
                taking.subscription,
                handed,
                verdict,
                retry_after_s=wait_s,
                reason=request.reason,
            )
        except (EventMalformed, StoreError) as error:
            taking.put_back(request.delivery, unsettled)
            raise refused_as(error) from error
        self._forget(handed)
        return counted

    def _forget(self, handed: Handed) -> None:
        self._causes.pop(handed.token.decode("ascii"), None)
