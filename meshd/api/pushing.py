"""Events pushed to agents beside this sidecar: a POST each, CloudEvents 1.0 in binary mode, as `subscriptions` says.

What the agent answers is what became of the event: 2xx is SUCCESS; 408, 425, 428, 429 and every status from 500 is
RETRY, no sooner than its Retry-After says; every other 4xx is DROP. Where it never reached the agent, it is RETRY.
Where it may have, and nothing is heard of it, the attempt is given back: the next one is marked.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

from meshd.api.cloud_events import binary
from meshd.api.handing import admitted, is_held, join, settle
from meshd.api.session_contexts import publisher_of
from meshd.engines.bus_event import SECONDS_MAX
from meshd.engines.bus_moment import unix_ns
from meshd.engines.bus_port import Event, EventMalformed, Start, Verdict
from meshd.engines.bus_terms import Terms
from meshd.engines.port import StoreClosed, StoreError
from meshd.policy.addressing import APP
from meshd.proxy.errand import Unheard, Untimely, hand
from meshd.refusal import Refused
from meshd.trace.knowledge import FIELD
from meshd.wire.fields import retry_after_s
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.api.handing import Handed
    from meshd.api.mesh import Mesh
    from meshd.engines.bus_port import Delivery, Subscription
    from meshd.policy.compiled import Policy
    from meshd.policy.model_events import SubscriptionSection
    from meshd.proxy.errand import Answered

AGAIN_S: Final = 2.0
"""After the bus failed, before it is asked again."""
SPARE_S: Final = 5.0
"""By how much longer the bus waits than the agent has time: what comes at the last moment still counts."""
ATTEMPT: Final = b"meshd-event-attempt"
MARKED: Final = b"meshd-event-may-have-been-handled"
_LATER: Final = frozenset({408, 425, 428, 429})
"""With 428 an agent passes on what it was told of a call of its own: a person must allow it first."""
_TERMS: Final = Terms()
_DIGITS: Final = re.compile(r"\d+")
log = logging.getLogger("meshd.events")


class Pushing:
    """What the policy in force wants pushed."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._pushes: dict[SubscriptionSection, Push] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def take(self, policy: Policy) -> None:
        """Begin what a policy names and end what it names no more; what stays as it is goes on."""
        self.take_all(policy.subscriptions)

    def take_all(self, sections: Sequence[SubscriptionSection]) -> None:
        """The same of subscriptions that are no policy's own."""
        wanted = dict.fromkeys(sections)
        for section in [one for one in self._pushes if one not in wanted]:
            task = asyncio.get_running_loop().create_task(self._pushes.pop(section).end(section.handling_time))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        for section in wanted:
            if section.to == APP and not self._mesh.proxy.has_app:
                log.warning("nobody gets what is published to %s: there is no --app", section.topic)
            elif section not in self._pushes:
                self._pushes[section] = Push(self._mesh, section)

    async def end(self, grace_s: float) -> None:
        """Hand out no more; let what is under way end for at most `grace_s` seconds."""
        pushes, self._pushes = list(self._pushes.values()), {}
        await asyncio.gather(*[push.end(grace_s) for push in pushes], *self._ending)


def _start_of(section: SubscriptionSection) -> Start | None:
    if section.starts_at is not None:
        return Start(at_s=unix_ns("starts_at", section.starts_at) / 1e9)
    return None if section.starts_after is None else Start(after=int(section.starts_after))


class Push:
    """One subscription of the policy."""

    def __init__(self, mesh: Mesh, section: SubscriptionSection) -> None:
        self._mesh = mesh
        self.section = section
        self.agent = mesh.agent if section.to == APP else section.to
        self._busy: set[asyncio.Task[None]] = set()
        self._unheard: set[asyncio.Task[None]] = set()
        """What waits to be handed out again, since nothing was heard of it."""
        self._is_over = False
        self._subscription: Subscription | None = None
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run())

    async def end(self, grace_s: float) -> None:
        """Hand out no more, and let what is under way end for at most `grace_s` seconds."""
        self._is_over = True
        self._task.cancel()
        await asyncio.wait((self._task,))
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=grace_s)
        for task in (*self._busy, *self._unheard):
            task.cancel()
        if self._subscription is not None:
            try:
                await self._subscription.close()
            except StoreError as error:
                log.warning("events that were under way are handed out again once their time is over: %s", error)

    async def _run(self) -> None:
        section, said = self.section, ""
        while not self._is_over:
            try:
                self._subscription = await join(
                    self._mesh,
                    self.agent,
                    section.topic,
                    section.group,
                    starts_at_oldest=section.starts_at_oldest,
                    handling_s=min(section.handling_time + SPARE_S, SECONDS_MAX),
                    start=_start_of(section),
                )
                said = ""
                await self._take(self._subscription)
            except StoreClosed:
                return
            except (StoreError, EventMalformed, Refused) as error:
                # How far the bus has come is part of the words, and changes with every event.
                if (words := _DIGITS.sub("", str(error))) != said:
                    said = words
                    log.warning(
                        "the bus has nothing of %s for %s: %s; it is asked again", section.topic, section.to, error
                    )
                await asyncio.sleep(AGAIN_S)

    async def _take(self, subscription: Subscription) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(self.section.at_once)
        while not self._is_over:
            await room.acquire()
            delivery = await subscription.next()
            task = loop.create_task(self._deliver(subscription, delivery))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)
            task.add_done_callback(lambda _: room.release())

    async def _deliver(self, subscription: Subscription, delivery: Delivery) -> None:
        """Hand an event over, and settle it."""
        mesh = self._mesh
        try:
            handed = await admitted(mesh, self.agent, subscription, delivery, self.section.handling_time)
            if handed is None:
                return
            try:
                answered = await self._hand(subscription, handed)
            except Untimely:
                return
            except Unheard as why:
                log.warning("nothing was heard of an event for %s: %s", self.section.to, why.message)
                # Without its data: of what waits there may be much, and the bus has it.
                bare = delivery._replace(event=Event(delivery.event.topic, delivery.event.source))
                task = asyncio.get_running_loop().create_task(self._give_back(subscription, bare))
                self._unheard.add(task)
                task.add_done_callback(self._unheard.discard)
                return
            except Refused as why:
                verdict, wait_s, reason = Verdict.RETRY, None, f"{why.reason.value}: {why.message}"
            else:
                verdict, wait_s, reason = self._judged(answered)
            await settle(mesh, subscription, handed, verdict, retry_after_s=wait_s, reason=reason)
        except StoreError as error:
            # It is handed out again when its time is over.
            log.warning("what became of an event for %s could not be kept: %s", self.section.to, error)
        except Exception:
            log.exception("an event could not be handed to %s", self.section.to)

    async def _give_back(self, subscription: Subscription, delivery: Delivery) -> None:
        """Have an event of which nothing was heard handed out again, marked, after a wait as before every retry."""
        await asyncio.sleep(_TERMS.retry_s(delivery.attempt))
        try:
            await subscription.give_back(delivery, is_unseen=False)
        except StoreError as error:
            log.warning(
                "an event for %s waits until it can be given back, or its time is over: %s", self.section.to, error
            )

    async def _hand(self, subscription: Subscription, handed: Handed) -> Answered:
        """Hand an event over, while it is this sidecar's. Raises as `meshd.proxy.errand.hand` does."""
        while True:
            try:
                return await self._post(handed, lambda: subscription.is_sure(handed.delivery))
            except Untimely:
                if not await is_held(self._mesh, subscription, handed):
                    raise

    async def _post(self, handed: Handed, is_timely: Callable[[], bool]) -> Answered:
        mesh, section, delivery = self._mesh, self.section, handed.delivery
        event, trace = delivery.event, mesh.telemetry.provenance.trace
        fields = [*binary(event), (ATTEMPT, b"%d" % delivery.attempt)]
        if delivery.may_have_been_handled:
            fields.append((MARKED, b"true"))
        publisher = publisher_of(mesh, delivery.token)
        if publisher is not None and trace is not None and handed.noted:
            # By which the call is known to follow from the event.
            fields.append((FIELD, trace.signed(handed.actor.workflow, handed.noted)))
        if section.to == APP:
            # As from another sidecar: what the token says holds for whatever the agent then does.
            if publisher is not None:
                fields.append((codec.HEADER_CONTEXT, delivery.token))
            upstream = ""
        else:
            upstream = section.to
        return await hand(
            mesh.proxy,
            upstream,
            section.path,
            fields,
            event.data,
            context=publisher,
            timeout_s=section.handling_time,
            is_timely=is_timely,
            in_hand=handed.hand,
        )

    def _judged(self, answered: Answered) -> tuple[Verdict, float | None, str]:
        """Return what an answer says: a verdict, the wait before the next attempt, and a reason."""
        status = answered.status
        if 200 <= status < 300:
            return Verdict.SUCCESS, None, ""
        reason = f"{self.section.to} answered with status {status}: {answered.body[:200].decode('utf-8', 'replace')}"
        if 400 <= status < 500 and status not in _LATER:
            log.warning("an event was dropped: %s", reason)
            return Verdict.DROP, None, reason
        return Verdict.RETRY, retry_after_s(answered.headers, self._mesh.wall_clock()), reason
