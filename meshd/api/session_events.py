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
from meshd.api.event_frames import event_frame
from meshd.api.failing import refused_as
from meshd.api.handing import Handed, is_held, join, next_for, start_of
from meshd.api.handing import settle as settle_with
from meshd.api.keeping_events import Publication, publish_all
from meshd.api.publishing import NO_CAUSE, HeldPublication, event_of
from meshd.api.session_subscribed import PATIENCE_S, HandedOver, Subscribed
from meshd.engines.bus_event import SECONDS_MAX
from meshd.engines.bus_port import HANDLING_S, Delivery, EventMalformed, Subscription, Verdict
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import events_pb2
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1.status_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.api.publishing import Cause
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


class Events:
    """One session's part in the bus."""

    __slots__ = (
        "_causes", "_credit", "_errands", "_handed", "_handed_bytes", "_runner", "_session", "_subscribed", "_waiting",
    )  # fmt: skip

    def __init__(self, session: Session) -> None:
        self._session = session
        self._errands: deque[pb.Publish | Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        """Publications of which a supervisor decides."""
        self._subscribed: dict[int, Subscribed] = {}
        self._handed: dict[int, HandedOver] = {}
        self._handed_bytes = 0
        self._causes: dict[str, Cause] = {}
        """Tokens that were handed out with an event: what is published under one follows from it."""
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
        subscribed = self._subscribed[subscribe.id] = Subscribed(subscribe.id, subscribe.request)
        self._errand(lambda: self._subscribe(subscribed))

    def unsubscribe(self, id: int) -> None:
        """Leave a topic; what is under way may still be settled, and goes to others where it is not in time."""
        subscribed = self._subscribed.pop(id, None)
        if subscribed is not None:
            self._errand(lambda: self._leave(subscribed))

    def settle(self, settle: pb.Settle) -> None:
        """Say what became of an event; one that is not, or no longer, under way is passed over."""
        handed = self._handed.get(settle.id)
        if handed is not None:
            self._forget(settle.id, handed)
            self._errand(lambda: self._settle(handed, settle))

    def _forget(self, id: int, handed: HandedOver) -> None:
        del self._handed[id]
        self._causes.pop(handed.token, None)
        self._handed_bytes -= len(handed.handed.delivery.event.data)
        self.has_credit()

    async def look_again(self, frame: pb.ConnectResponse) -> None:
        """See whether the event in a frame that is about to be written may still be handed over: it has waited for a
        connection, or for what was to be written before it. Where not, the frame says nothing."""
        id = frame.event.id
        handed = self._handed.get(id)
        if handed is None or handed.subscribed.subscription is None:
            return  # the session has ended
        if await is_held(self._session.mesh, handed.subscribed.subscription, handed.handed):
            return
        if id in self._handed:
            self._forget(id, handed)
            frame.ClearField("event")
            self._session.keep_credit()
            if handed.subscribed.is_over:
                self._begin(lambda: self._leave(handed.subscribed))

    @property
    def is_busy(self) -> bool:
        """The bus has yet to do something, or the agent to settle something."""
        return bool(self._handed) or bool(self._waiting) or self._runner is not None

    def has_credit(self) -> None:
        """The agent has room for more, or has come back."""
        if self._credit is not None:
            self._credit.set()

    def close(self) -> None:
        """End all; unsettled events go to others, marked."""
        for task in self._waiting:
            task.cancel()
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

    async def _publish(self, batch: list[pb.Publish]) -> None:
        events: list[Publication] = []
        ids: list[int] = []
        for publish in batch:
            try:
                made = await self._event_of(publish.request)
            except Exception as error:  # noqa: BLE001 - each publication ends in a reply
                self._answer_publish(publish.id, error)
                continue
            if isinstance(made, HeldPublication):
                self._hold(publish.id, made)
                continue
            events.append(made)
            ids.append(publish.id)
        if not events:
            return
        try:
            done = await publish_all(self._session.mesh, events)
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

    def _hold(self, id: int, held: HeldPublication) -> None:
        """Publish it once the supervisor has answered; all else goes on meanwhile."""
        task = asyncio.get_running_loop().create_task(self._decided(id, held))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _decided(self, id: int, held: HeldPublication) -> None:
        try:
            made = await held.decided()
        except Exception as error:  # noqa: BLE001 - as above
            self._answer_publish(id, error)
        else:
            self._begin(lambda: self._publish_alone(id, made, None))

    async def _publish_alone(self, id: int, event: Publication, error: Exception | None) -> None:
        if error is not None:
            self._answer_publish(id, error)
            return
        try:
            (published,) = await publish_all(self._session.mesh, [event])
        except Exception as alone:  # noqa: BLE001 - as above
            self._answer_publish(id, alone)
        else:
            self._answer_publish(id, published)

    async def _event_of(self, request: events_pb2.PublishRequest) -> Publication | HeldPublication:
        session = self._session
        return await event_of(session.mesh, session.name, request, self._causes.get(request.token, NO_CAUSE))

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

    async def _subscribe(self, subscribed: Subscribed) -> None:
        request = subscribed.request
        try:
            handling_s = HANDLING_S
            if request.HasField("handling_time"):
                handling_s = frames.seconds(request.handling_time, "subscribe.request.handling_time")
                subscribed.patience_s = min(PATIENCE_S, handling_s / 2)
            subscribed.subscription = await join(
                self._session.mesh,
                self._session.name,
                request.topic,
                request.group,
                starts_at_oldest=request.starts_at_oldest,
                handling_s=handling_s,
                start=start_of(request),
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

    async def _hand_out(self, subscribed: Subscribed) -> None:
        session, credit = self._session, self._credit
        assert subscribed.subscription is not None
        assert credit is not None
        while not subscribed.is_over:
            await self._room(credit)
            try:
                handed = await next_for(session.mesh, session.name, subscribed.subscription)
            except StoreError as error:
                if subscribed.is_over:
                    return
                log.warning("the bus has nothing for the subscription of %s: %s", session.name, error)
                await asyncio.sleep(PAUSE_S)
                continue
            # Not before, or a subscription that waits would keep credit from calls: then it may have to wait again.
            try:
                async with asyncio.timeout(subscribed.patience_s):
                    await self._room(credit)
            except TimeoutError:
                await self._put_back(subscribed.subscription, handed.delivery)
                continue
            if await is_held(session.mesh, subscribed.subscription, handed):
                self._hand(subscribed, session.next_delivery(), handed)

    async def _put_back(self, subscription: Subscription, delivery: Delivery) -> None:
        """Let others of the group have what there is no credit for: its handling time would run, and nobody have it."""
        try:
            await subscription.give_back(delivery, is_unseen=True)
        except StoreError as error:
            log.warning(
                "an event that %s has no credit for waits until it can be given back, or its time is over: %s",
                self._session.name,
                error,
            )

    async def _room(self, credit: asyncio.Event) -> None:
        while not self._session.can_take() or len(self._handed) >= HANDED_MAX or self._handed_bytes >= HANDED_BYTES_MAX:
            credit.clear()
            await credit.wait()

    def _hand(self, subscribed: Subscribed, id: int, handed: Handed) -> None:
        session, delivery, context = self._session, handed.delivery, handed.context
        event = delivery.event
        frame = pb.EventDelivery(
            id=id,
            subscription=subscribed.id,
            event=event_frame(event),
            attempt=delivery.attempt,
            may_have_been_handled=delivery.may_have_been_handled,
        )
        token = ""
        if context is not None:
            token = handed.token.decode("ascii")
            frame.context.CopyFrom(frames.context_frame(context, token, "token"))
            self._causes[token] = handed.cause
        self._handed_bytes += len(event.data)
        self._handed[id] = HandedOver(subscribed, handed, token)
        session.put(pb.ConnectResponse(event=frame))

    async def _settle(self, handed: HandedOver, settle: pb.Settle) -> None:
        subscription = handed.subscribed.subscription
        if subscription is None:
            return
        retry_after_s = None
        try:
            if settle.HasField("retry_after"):
                retry_after_s = min(frames.seconds(settle.retry_after, "settle.retry_after"), SECONDS_MAX)
            verdict = _VERDICTS.get(settle.verdict, Verdict.RETRY)
            await settle_with(
                self._session.mesh,
                subscription,
                handed.handed,
                verdict,
                retry_after_s=retry_after_s,
                reason=settle.reason,
            )
        except (StoreError, EventMalformed, Refused) as error:
            # The event is handed out again when its handling time is over: said here, since no frame answers a Settle.
            log.warning("what %s said of an event could not be kept: %s", self._session.name, error)
        if handed.subscribed.is_over:
            await self._leave(handed.subscribed)

    async def _leave(self, subscribed: Subscribed) -> None:
        """Hand out no more of a topic, and end it once nothing of it is under way."""
        subscribed.is_over = True
        if subscribed.task is not None:
            subscribed.task.cancel()
        if not any(one.subscribed is subscribed for one in self._handed.values()):
            await self._end(subscribed)

    async def _end(self, subscribed: Subscribed) -> None:
        subscribed.is_over = True
        if subscribed.task is not None:
            subscribed.task.cancel()
        if subscribed.subscription is not None:
            await subscribed.subscription.close()


def status_of_error(error: Exception) -> Status:
    return frames.status_of(refused_as(error))
