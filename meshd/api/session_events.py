"""Events in a session: what an agent publishes and is handed, with the context that goes from one to the other.

The bus waits, and its order counts: what a session asks of it is done by one task, one after the other, and what was
published meanwhile goes to it together. Each subscription has a task that takes an event whenever there is credit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from meshd.api import session_frames as frames
from meshd.api.failing import refused_by
from meshd.api.fields import unix_ns
from meshd.api.session_contexts import for_consumer, for_publisher
from meshd.engines.bus_event import REASON_CHARACTERS_MAX, SECONDS_MAX
from meshd.engines.bus_port import HANDLING_S, Delivery, Event, EventMalformed, Subscription, Verdict
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import events_pb2
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1.status_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.api.session import Session

SUBSCRIPTIONS_MAX: Final = 64
"""Of one session."""
HANDED_MAX: Final = 1024
HANDED_BYTES_MAX: Final = 32 * 2**20
"""Events, and their data, that an agent may leave unsettled, whatever credit it gives."""
BATCH_MAX: Final = 64
"""Events that go to the bus together."""
ERRANDS_MAX: Final = 4096
"""What waits for the bus. Publishing is limited by credit: only an agent that joins and leaves topics gets here."""
PAUSE_S: Final = 1.0
"""After the bus failed a subscription, before it is asked again."""
_VERDICTS: Final = {
    events_pb2.VERDICT_SUCCESS: Verdict.SUCCESS,
    events_pb2.VERDICT_DROP: Verdict.DROP,
}
log = logging.getLogger("meshd.api")


class _Handed:
    """An event that the agent has not settled."""

    __slots__ = ("delivery", "subscribed", "token")

    def __init__(self, subscribed: _Subscribed, delivery: Delivery, token: str) -> None:
        self.subscribed = subscribed
        self.delivery = delivery
        self.token = token


class _Subscribed:
    """One subscription: what the bus has for it goes to the agent as its credit allows."""

    __slots__ = ("id", "is_over", "request", "subscription", "task", "topic")

    def __init__(self, id: int, request: events_pb2.SubscribeRequest) -> None:
        self.id = id
        self.request = request
        self.topic = request.topic
        self.subscription: Subscription | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_over = False


class Events:
    """One session's part in the bus."""

    __slots__ = ("_causes", "_credit", "_errands", "_handed", "_handed_bytes", "_runner", "_session", "_subscribed")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._errands: deque[pb.Publish | Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._subscribed: dict[int, _Subscribed] = {}
        self._handed: dict[int, _Handed] = {}
        self._handed_bytes = 0
        self._causes: dict[str, str] = {}
        """Tokens that were handed out with an event, and its id: what is published under one follows from it."""
        self._credit: asyncio.Event | None = None

    # ------------------------------------------------------------------ from the agent

    def publish(self, publish: pb.Publish) -> None:
        """Take an event; its reply comes when the bus has it."""
        self._errand(publish)

    def subscribe(self, subscribe: pb.Subscribe) -> None:
        """Join a topic. Raises Refused for an id that is none, or is in use."""
        if not subscribe.id:
            raise frames.malformed("subscribe.id", "it is missing; ids count from 1")
        if subscribe.id in self._subscribed:
            raise frames.malformed("subscribe.id", f"{subscribe.id} is in use already")
        if len(self._subscribed) >= SUBSCRIPTIONS_MAX:
            self._answer_subscribe(
                subscribe.id, Refused(Reason.OVERLOADED, f"A session has at most {SUBSCRIPTIONS_MAX} subscriptions")
            )
            return
        subscribed = self._subscribed[subscribe.id] = _Subscribed(subscribe.id, subscribe.request)
        self._errand(lambda: self._subscribe(subscribed))

    def unsubscribe(self, id: int) -> None:
        """Leave a topic; what is under way may still be settled, and goes to others where it is not in time."""
        subscribed = self._subscribed.pop(id, None)
        if subscribed is not None:
            self._errand(lambda: self._leave(subscribed))

    def settle(self, settle: pb.Settle) -> None:
        """Say what became of an event; one that is not, or no longer, under way is passed over."""
        handed = self._handed.pop(settle.id, None)
        if handed is not None:
            self._causes.pop(handed.token, None)
            self._handed_bytes -= len(handed.delivery.event.data)
            self.has_credit()
            self._errand(lambda: self._settle(handed, settle))

    @property
    def is_busy(self) -> bool:
        """The bus has yet to do something, or the agent to settle something."""
        return bool(self._handed) or self._runner is not None

    def has_credit(self) -> None:
        """The agent has room for more, or has come back."""
        if self._credit is not None:
            self._credit.set()

    def close(self) -> None:
        """End all; unsettled events go to others, marked."""
        # Those that were left too, while something of theirs is unsettled.
        left = dict.fromkeys(one.subscribed for one in self._handed.values())
        for subscribed in dict.fromkeys((*self._subscribed.values(), *left)):
            self._begin(lambda subscribed=subscribed: self._end(subscribed))  # type: ignore[misc]
        self._subscribed.clear()
        self._handed.clear()
        self._causes.clear()

    # ------------------------------------------------------------------ what waits for the bus

    def _errand(self, errand: pb.Publish | Callable[[], Coroutine[Any, Any, None]]) -> None:
        if len(self._errands) >= ERRANDS_MAX:
            raise frames.too_much(f"{len(self._errands)} frames wait for the bus")
        self._begin(errand)

    def _begin(self, errand: pb.Publish | Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._errands.append(errand)
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._errands:
                errand = self._errands.popleft()
                if isinstance(errand, pb.Publish):
                    batch = [errand]
                    while self._errands and len(batch) < BATCH_MAX and isinstance(self._errands[0], pb.Publish):
                        batch.append(self._errands.popleft())  # type: ignore[arg-type]
                    await self._publish(batch)
                    continue
                try:
                    await errand()
                except StoreError as error:
                    log.warning("the bus did not do what the session of %s asked: %s", self._session.name, error)
                except Exception:
                    # One errand's fault must not keep the others waiting.
                    log.exception("an errand of the session of %s failed", self._session.name)
        finally:
            self._runner = None

    @property
    def _bus(self) -> Any:
        bus = self._session.mesh.bus
        if bus is None:
            raise Refused(Reason.STORE_UNAVAILABLE, "This sidecar has no bus", is_retryable=False)
        return bus

    async def _publish(self, batch: list[pb.Publish]) -> None:
        events: list[Event] = []
        ids: list[int] = []
        for publish in batch:
            try:
                events.append(self._event_of(publish.request))
            except Exception as error:  # noqa: BLE001 - each publication ends in a reply
                self._answer_publish(publish.id, error)
            else:
                ids.append(publish.id)
        if not events:
            return
        try:
            done = await self._bus.publish(events)
        except EventMalformed as error:
            # It names one event, and the others are to be kept: so each goes alone.
            for id, event in zip(ids, events, strict=True):
                await self._publish_alone(id, event, error if len(events) == 1 else None)
            return
        except Exception as error:  # noqa: BLE001 - as above
            for id in ids:
                self._answer_publish(id, error)
            return
        for id, published in zip(ids, done, strict=True):
            self._answer_publish(id, published)

    async def _publish_alone(self, id: int, event: Event, error: Exception | None) -> None:
        if error is not None:
            self._answer_publish(id, error)
            return
        try:
            (published,) = await self._bus.publish([event])
        except Exception as alone:  # noqa: BLE001 - as above
            self._answer_publish(id, alone)
        else:
            self._answer_publish(id, published)

    def _event_of(self, request: events_pb2.PublishRequest) -> Event:
        session, event = self._session, request.event
        context, token = for_publisher(session.mesh, session.name, request.token)
        mesh = session.mesh
        mesh.turns.publish(
            context, event.topic, event.data, mesh.policy, now_s=mesh.proxy.now_s, wall_s=mesh.wall_clock()
        )
        source = event.source or session.name
        if source != session.name and not source.startswith(f"{session.name}/"):
            # An event is known by (source, id): another's source would take its place.
            raise EventMalformed("event.source", f"empty, {session.name}, or what begins with {session.name}/")
        return Event(
            topic=event.topic,
            source=source,
            id=event.id,
            type=event.type,
            subject=event.subject,
            time_ns=unix_ns("event.time", event.time) if event.HasField("time") else 0,
            data_content_type=event.data_content_type,
            data_schema=event.data_schema,
            data=event.data,
            data_ref=event.data_ref,
            partition_key=event.partition_key,
            correlation_id=context.workflow,
            causation_id=self._causes.get(request.token, ""),
            extensions=dict(event.extensions),
            token=token,
        )

    def _answer_publish(self, id: int, done: Any) -> None:
        reply = pb.PublishReply(id=id)
        if isinstance(done, Exception):
            reply.status.CopyFrom(status_of_error(done))
        else:
            reply.response.event_id = done.id
            reply.response.sequence = done.sequence
            reply.response.is_duplicate = done.is_duplicate
            reply.status.code = frames.OK
        self._session.put(pb.ConnectResponse(published=reply))
        self._session.done()

    # ------------------------------------------------------------------ subscriptions

    async def _subscribe(self, subscribed: _Subscribed) -> None:
        request = subscribed.request
        try:
            handling_s = HANDLING_S
            if request.HasField("handling_time"):
                handling_s = frames.seconds(request.handling_time, "subscribe.request.handling_time")
            subscribed.subscription = await self._bus.subscribe(
                request.topic,
                request.group or self._session.name,
                starts_at_oldest=request.starts_at_oldest,
                handling_s=handling_s,
            )
        except Exception as error:  # noqa: BLE001 - it ends in a reply
            self._subscribed.pop(subscribed.id, None)
            self._answer_subscribe(subscribed.id, error)
            return
        self._answer_subscribe(subscribed.id, None)
        if self._credit is None:
            self._credit = asyncio.Event()
        if not subscribed.is_over:
            subscribed.task = asyncio.get_running_loop().create_task(self._hand_out(subscribed))

    def _answer_subscribe(self, id: int, error: Exception | None) -> None:
        status = Status() if error is None else status_of_error(error)
        self._session.put(pb.ConnectResponse(subscribed=pb.SubscribeReply(id=id, status=status)))

    async def _hand_out(self, subscribed: _Subscribed) -> None:
        session, credit = self._session, self._credit
        assert subscribed.subscription is not None
        assert credit is not None
        while not subscribed.is_over:
            await self._room(credit)
            try:
                delivery = await subscribed.subscription.next()
            except StoreError as error:
                if subscribed.is_over:
                    return
                log.warning("the bus has nothing for the subscription of %s: %s", session.name, error)
                await asyncio.sleep(PAUSE_S)
                continue
            # Not before, or a subscription that waits would keep credit from calls: then it may have to wait again.
            await self._room(credit)
            self._hand(subscribed, session.next_delivery(), delivery)

    async def _room(self, credit: asyncio.Event) -> None:
        while not self._session.can_take() or len(self._handed) >= HANDED_MAX or self._handed_bytes >= HANDED_BYTES_MAX:
            credit.clear()
            await credit.wait()

    def _hand(self, subscribed: _Subscribed, id: int, delivery: Delivery) -> None:
        session, event = self._session, delivery.event
        frame = pb.EventDelivery(
            id=id,
            subscription=subscribed.id,
            event=_event_frame(event),
            attempt=delivery.attempt,
            may_have_been_handled=delivery.may_have_been_handled,
        )
        token = ""
        context, minted = for_consumer(session.mesh, session.name, delivery.token)
        if context is not None:
            token = minted.decode("ascii")
            frame.context.CopyFrom(frames.context_frame(context, token, "token"))
            self._causes[token] = event.id
        self._handed_bytes += len(event.data)
        self._handed[id] = _Handed(subscribed, delivery, token)
        session.put(pb.ConnectResponse(event=frame))

    async def _settle(self, handed: _Handed, settle: pb.Settle) -> None:
        subscription = handed.subscribed.subscription
        if subscription is None:
            return
        retry_after_s = None
        try:
            if settle.HasField("retry_after"):
                retry_after_s = min(frames.seconds(settle.retry_after, "settle.retry_after"), SECONDS_MAX)
            verdict = _VERDICTS.get(settle.verdict, Verdict.RETRY)
            await subscription.settle(
                handed.delivery, verdict, retry_after_s=retry_after_s, reason=settle.reason[:REASON_CHARACTERS_MAX]
            )
        except (StoreError, EventMalformed, Refused) as error:
            # The event is handed out again when its handling time is over: said here, since no frame answers a Settle.
            log.warning("what %s said of an event could not be kept: %s", self._session.name, error)
        if handed.subscribed.is_over:
            await self._leave(handed.subscribed)

    async def _leave(self, subscribed: _Subscribed) -> None:
        """Hand out no more of a topic, and end it once nothing of it is under way."""
        subscribed.is_over = True
        if subscribed.task is not None:
            subscribed.task.cancel()
        if not any(one.subscribed is subscribed for one in self._handed.values()):
            await self._end(subscribed)

    async def _end(self, subscribed: _Subscribed) -> None:
        subscribed.is_over = True
        if subscribed.task is not None:
            subscribed.task.cancel()
        if subscribed.subscription is not None:
            await subscribed.subscription.close()


def _event_frame(event: Event) -> events_pb2.Event:
    made = events_pb2.Event(
        id=event.id,
        source=event.source,
        type=event.type or event.topic,
        subject=event.subject,
        data_content_type=event.data_content_type or frames.CONTENT_TYPE,
        data_schema=event.data_schema,
        data=event.data,
        data_ref=event.data_ref,
        partition_key=event.partition_key,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        sequence=event.sequence,
        extensions=event.extensions,
        topic=event.topic,
    )
    if event.time_ns:
        made.time.FromNanoseconds(event.time_ns)
    return made


def status_of_error(error: Exception) -> Status:
    if isinstance(error, EventMalformed):
        error = Refused(Reason.MALFORMED, str(error))
    return frames.status_of(refused_by(error, "The bus failed"))
