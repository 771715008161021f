"""Without a sidecar, by the program's own wish: this process alone, and no rule at all. Stdlib only.

Tools and handlers run, steps go nowhere, events reach the handlers of this process, and calls its agents; whatever
needs the mesh raises NoSidecar.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Final

from meshd_sdk.current import Current, current
from meshd_sdk.errors import NoSidecar, TimedOut
from meshd_sdk.handlers import matches
from meshd_sdk.link import Ask, Balance, Charged, Entry, Event, Given, Opening, Piece, Published, Usage, new_id
from meshd_sdk.stateless import Stateless

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd_sdk.approvals import Approval, Wish
    from meshd_sdk.handlers import Subscription
    from meshd_sdk.serving import Serving

ATTEMPTS_MAX: Final = 5
RETRY_FIRST_S: Final = 0.1
PUBLISHED_MAX: Final = 10_000
"""Ids of events that are remembered, so that one published again changes nothing."""
log = logging.getLogger("meshd_sdk")
_HERE: dict[str, Ungoverned] = {}
"""The agents of this process, by name."""


class Ungoverned(Stateless):
    """See the module."""

    is_governed: Final = False

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._tasks: set[asyncio.Task[None]] = set()
        self._published: dict[str, str] = {}
        self._sequence = 0

    async def begin(self) -> None:
        """Be there for the others of this process. Raises ValueError where one has the name already."""
        if self._serving.agent in _HERE:
            raise ValueError(f"an agent {self._serving.agent!r} is in this process already")
        _HERE[self._serving.agent] = self

    async def end(self, within_s: float) -> None:
        """Finish what runs."""
        if _HERE.get(self._serving.agent) is self:
            del _HERE[self._serving.agent]
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=within_s)
            for task in late:
                task.cancel()

    async def call(self, ask: Ask) -> Piece:
        """Make a call and return its whole reply."""
        pieces = [piece async for piece in self.stream(ask)]
        return Piece(b"".join([piece.payload for piece in pieces]), pieces[0].content_type if pieces else "")

    async def stream(self, ask: Ask) -> AsyncIterator[Piece]:
        """Call an agent of this process."""
        other = _HERE.get(ask.target)
        if other is None:
            raise NoSidecar(f"{ask.target} is not in this process, and without a sidecar nothing else can be called")
        try:
            async for piece in other._serving.run_call(
                self._given(ask.target),
                ask.operation,
                ask.payload,
                ask.content_type,
                timeout_s=ask.timeout_s,
                idempotency_key=ask.idempotency_key,
            ):
                yield piece
        except TimedOut as error:
            raise TimedOut(f"no reply from {ask.target} within {ask.timeout_s} s") from error

    async def publish(self, token: str, event: Event) -> Published:
        """Hand an event to the handlers of this process: to one of each group."""
        if (known := self._published.get(event.id)) is not None:
            return Published(event.id, known, is_duplicate=True)
        self._sequence += 1
        sequence = f"{self._sequence:020}"
        self._published[event.id] = sequence
        if len(self._published) > PUBLISHED_MAX:
            del self._published[next(iter(self._published))]
        groups: set[str] = set()
        for other in tuple(_HERE.values()):
            for subscription in other._serving.subscriptions:
                group = subscription.group or other._serving.agent
                if matches(subscription.topic, event.topic) and (key := f"{group} {subscription.topic}") not in groups:
                    groups.add(key)
                    handed = _stamped(event, self._serving.agent, sequence)
                    task = asyncio.create_task(other._handle(subscription, handed, self._given(other._serving.agent)))
                    other._tasks.add(task)
                    task.add_done_callback(other._tasks.discard)
        return Published(event.id, sequence, is_duplicate=False)

    async def _handle(self, subscription: Subscription, event: Event, given: Given) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            verdict = await self._serving.run_event(subscription, _again(event, attempt), given)
            if verdict.word != "RETRY":
                return
            delay_s = RETRY_FIRST_S * 2**attempt if verdict.after_s is None else verdict.after_s
            await asyncio.sleep(delay_s)
        log.error("an event of %s was given up after %d attempts: %s", event.topic, ATTEMPTS_MAX, verdict.reason)

    def _given(self, agent: str) -> Given:
        now = current() or Current()
        return Given(
            Current(workflow=now.workflow, agent=agent, traceparent=now.traceparent, deadline_s=now.deadline_s)
        )

    async def record(self, token: str, entries: list[Entry]) -> None:
        """Let them go: there is no trace."""

    async def open(self, opening: Opening) -> Given:
        """Open a workflow that nothing limits but its deadline, which is for reading."""
        deadline_s = None if opening.timeout_s is None else time.time() + opening.timeout_s
        return Given(
            Current("", opening.workflow or new_id(), opening.agent, opening.traceparent, deadline_s=deadline_s)
        )

    async def read(self, token: str) -> Given:
        """Return a context without a token: there is nobody to show it to."""
        return Given(Current(agent=self._serving.agent))

    async def narrow(self, token: str, limits: Opening) -> Given:
        """Return what `open` does."""
        return await self.open(limits)

    async def delegate(self, token: str, id: str, tokens: int) -> Given:
        """Return the current context: nothing is counted."""
        return self._given(self._serving.agent)

    async def reclaim(self, token: str, id: str) -> tuple[int, int]:
        """Nothing was set aside."""
        return 0, 0

    async def balance(self, token: str) -> list[Balance]:
        """Nothing is limited."""
        return []

    async def report_usage(self, token: str, id: str, usage: Usage) -> Charged:
        """Nothing is charged."""
        return Charged(0, is_exhausted=False)

    async def ask_approval(self, token: str, wish: Wish) -> Approval:
        """Raise NoSidecar: nothing passes unasked."""
        raise NoSidecar(f"{wish.operation} needs a person's approval, and without a sidecar nobody can be asked")

    async def wait_for_approval(
        self, token: str, id: str, use_id: str, timeout_s: float | None
    ) -> tuple[Approval, bool]:
        """Raise NoSidecar."""
        raise NoSidecar(f"without a sidecar nobody decides on the approval {id}")

    async def approvals(self, token: str, state: str) -> list[Approval]:
        """Nothing was asked."""
        return []


def _stamped(event: Event, source: str, sequence: str) -> Event:
    now = current()
    workflow = now.workflow if now is not None else ""
    return dataclasses.replace(
        event, source=event.source or source, sequence=sequence, workflow=workflow, time_s=time.time()
    )


def _again(event: Event, attempt: int) -> Event:
    return dataclasses.replace(event, attempt=attempt)
