"""What people are told: that they are asked, and what was decided. At least once, and never in the way of a call.

What has been told is noted with the approval. What has not, because the sidecar ended or nobody listened, is told at
the next sweep, by whichever sidecar sweeps: so whoever listens may hear a thing twice, under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.approvals.crowd import Crowd
from meshd.approvals.held_calls import HeldCalls
from meshd.approvals.record import Damaged
from meshd.approvals.state import State
from meshd.engines.bus_port import Event as BusEvent
from meshd.engines.bus_port import EventMalformed
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshd.approvals.desk import Desk
    from meshd.approvals.record import Approval
    from meshd.approvals.shelf import Found
    from meshd.engines.bus_port import Bus

log = logging.getLogger("meshd.approvals")

ASKED: Final = "asked"
WORKERS: Final = 4
TRIES: Final = 6
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
SWEEP_S: Final = 60.0
KEEP_S: Final = 7 * 86_400.0
"""How long an approval is kept after it is over."""
KEEP_ABANDONED_S: Final = 86_400.0
"""How long one that nobody decided on, and nobody will."""
TYPE: Final = "io.meshd.approval."
"""Before what has happened, in the `type` of a notice."""


class Unheard(Exception):
    """A notice was not taken; the message is for the log."""


def owed(approval: Approval) -> str:
    """Return what people must be told next of an approval; empty where they know all."""
    what = ASKED if approval.state is State.PENDING else approval.state.value
    if approval.state is State.USED:
        what = State.APPROVED.value
    return "" if what in approval.told else what


def notice(approval: Approval, what: str, now_s: float) -> dict[str, Any]:
    """Return a notice: a CloudEvent whose data has no argument of the call, but their digest, and no secret."""
    deciding = approval.denied_by
    by = (deciding.approver,) if deciding is not None else approval.allowed_by
    data: dict[str, Any] = {
        "id": approval.id,
        "state": approval.state.value,
        "summary": approval.summary,
        "workflow": approval.workflow,
        "agent": approval.agent,
        "kind": approval.kind,
        "target": approval.target,
        "digest": approval.digest,
        "asked_at": approval.asked_s,
        "expires_at": approval.expires_s,
        "approvers": list(approval.approvers),
        "quorum": approval.quorum,
        "is_inferred": approval.is_inferred,
    }
    if what == ASKED:
        data["show"] = f"meshd approvals show {approval.id}"
        data["decide"] = f"meshd approvals approve {approval.id}"
    else:
        data["decided_by"] = list(by)
        data["reason"] = deciding.reason if deciding is not None else approval.cancelled_for
    return {
        "specversion": "1.0",
        "id": f"{approval.id}/{what}",
        "source": f"/meshd/{approval.sidecar or approval.agent}",
        "type": TYPE + what,
        "subject": approval.id,
        "time": _rfc3339(now_s),
        "datacontenttype": "application/json",
        "data": data,
    }


def _rfc3339(unix_s: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Notices:
    """Tells, notes, and sweeps. One for the process."""

    def __init__(
        self,
        desk: Desk,
        settings: Callable[[], Any],
        bus: Bus | None,
        post: Callable[[Any, bytes, str, float], Awaitable[None]],
    ) -> None:
        """`settings` returns the policy's `approvals` of the moment; `post` sends one body to the webhook of settings,
        with the notice's id and its time, and raises Unheard where it was not taken."""
        self._desk = desk
        self._settings = settings
        self._bus = bus
        self._post = post
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._known: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.sent = 0
        self.failed = 0

    def start(self) -> None:
        """Begin to tell, and to sweep."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._work()) for _ in range(WORKERS)]
        self._tasks.append(loop.create_task(self._sweep_for_ever()))

    def tell(self, approval: Approval) -> None:
        """Have people told of an approval that is new or has changed. Returns at once."""
        settings = self._settings()
        if settings is None or not (settings.webhook or settings.topic):
            return
        what = owed(approval)
        if what and (approval.id, what) not in self._known:
            self._known.add((approval.id, what))
            self._queue.put_nowait((approval.id, what))

    async def _work(self) -> None:
        while True:
            id, what = await self._queue.get()
            try:
                await self._tell_whole(id, what)
            except (StoreError, Damaged) as error:
                log.warning("whether people know of the approval %s cannot be noted: %s", id, error)
            finally:
                self._known.discard((id, what))

    async def _tell_whole(self, id: str, what: str) -> None:
        found = await self._desk.shelf.read(id)
        if found is None or what in found.approval.told:
            return
        for tries in range(TRIES):
            try:
                await self._tell_once(found.approval, what)
            except Unheard as error:
                self.failed += 1
                log.warning("people could not be told of the approval %s: %s", id, error)
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(RETRY_S * 2**tries, RETRY_S_MAX))  # noqa: S311
            else:
                self.sent += 1
                await self._note(found, what)
                return

    async def _tell_once(self, approval: Approval, what: str) -> None:
        """Tell by webhook and by topic. Raises Unheard."""
        settings = self._settings()
        now_s = self._desk.clock()
        made = notice(approval, what, now_s)
        if settings.topic and self._bus is not None:
            event = BusEvent(
                topic=settings.topic,
                source=made["source"],
                id=made["id"],
                type=made["type"],
                subject=approval.id,
                data=msgspec.json.encode(made["data"]),
                partition_key=approval.id,
                correlation_id=approval.workflow[:1024],
            )
            try:
                await self._bus.publish([event])
            except (StoreError, EventMalformed) as error:
                raise Unheard(f"the topic {settings.topic}: {error}") from None
        if settings.webhook:
            await self._post(settings, msgspec.json.encode(made), made["id"], now_s)

    async def _note(self, found: Found | None, what: str) -> None:
        """Note with the approval that people know."""
        for _ in range(8):
            if found is None or what in found.approval.told:
                return
            told = msgspec.structs.replace(found.approval, told=(*found.approval.told, what))
            if await self._desk.shelf.change(found, told):
                return
            found = await self._desk.shelf.read(found.approval.id)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except StoreError as error:
                log.debug("approvals cannot be looked through: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Note what has expired, tell what is owed, forget what is long over, count what waits."""
        desk, now_s = self._desk, self._desk.clock()
        pending: dict[str, float] = {}
        crowd = Crowd()
        await desk.line.watch()
        async for page in desk.shelf.all():
            for _, found in page:
                if found is None:
                    continue
                crowd.note(found.approval, now_s)
                if await self._looked_at(found, now_s):
                    pending[found.approval.id] = found.approval.expires_s
        desk.pending, desk.crowd = pending, crowd

    async def _looked_at(self, found: Found, now_s: float) -> bool:
        """Do for one approval what is due; return whether it waits for people."""
        approval, state = found.approval, found.approval.state_at(now_s)
        if state is not approval.state:
            await self._desk.lapse(found)
            return False
        is_open = state in (State.PENDING, State.APPROVED)
        is_abandoned = state in (State.CANCELLED, State.EXPIRED) and not approval.decisions
        # Of what was taken back the time in which somebody would have decided means nothing.
        ended_s = approval.ended_s if is_abandoned else max(approval.ended_s, approval.expires_s)
        if not is_open and now_s > ended_s + (KEEP_ABANDONED_S if is_abandoned else KEEP_S):
            await HeldCalls(self._desk.shelf).forget(approval.id)
            await self._desk.shelf.forget(found)
            return False
        self.tell(approval)
        return state is State.PENDING

    async def close(self) -> None:
        """Stop. What is owed is told by the next sidecar, or at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
