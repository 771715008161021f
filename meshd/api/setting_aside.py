"""Events whose handlers ended since a person must decide first: set aside on the bus until that is so.

While somebody here waits for the decision the bus is told now and then that the event goes on waiting. Where this
sidecar ends it is handed out again soon after, and its handler's call attaches to the same approval.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshd.approvals.deciding import Declined
from meshd.approvals.holding import Holding
from meshd.approvals.state import State
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meshd.approvals.desk import Desk
    from meshd.approvals.record import Approval

RENEW_S: Final = 60.0
"""How often the bus is told."""
KEEP_S: Final = 150.0
"""For how long an event waits where it is told no more."""
LEAST_S: Final = 1.0
"""The shortest wait that a handler may say itself: its attempts do not count, so that it might go on without end."""
AGAIN_S: Final = 2.0
"""After the store failed, before it is asked again."""
WATCHED_MAX: Final = 10_000
"""Events whose decisions are waited for at once; those beyond are handed out again after `KEEP_S`."""
log = logging.getLogger("meshd.api")


class SettingAside:
    """One for the process, on the loop's thread."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_told = False
        """It is said that approvals cannot be read, and none was since."""

    def __len__(self) -> int:
        return len(self._tasks)

    def watch(
        self, ids: Sequence[str], defer: Callable[[float], Awaitable[bool]], lapse: Callable[[str], Awaitable[bool]]
    ) -> None:
        """Have an event handed out again once all these approvals are decided, or the time of one is over.

        `defer` and `lapse` are the bus's (`meshd.engines.bus_port.Subscription`), of this event.
        """
        if len(self._tasks) < WATCHED_MAX:
            task = asyncio.get_running_loop().create_task(self._watch(ids, defer, lapse))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Wait for nothing more."""
        for task in self._tasks:
            task.cancel()

    async def _watch(
        self, ids: Sequence[str], defer: Callable[[float], Awaitable[bool]], lapse: Callable[[str], Awaitable[bool]]
    ) -> None:
        try:
            pending = list(ids)
            while pending:
                stands = await asyncio.gather(*(self._stands(id) for id in pending))
                if vain := next((why for _, why in stands if why), ""):
                    await lapse(vain)
                    return
                pending = [id for id, (state, _) in zip(pending, stands, strict=True) if state is State.PENDING]
                if not await defer(KEEP_S if pending else 0.0):
                    return  # it was handed out, or is no more
        except StoreError as error:
            log.warning("an event that waited for a decision is handed out again within %g s: %s", KEEP_S, error)

    async def _stands(self, id: str) -> tuple[State | None, str]:
        """Wait for a decision, not for long, and return where an approval stands, None where there is none; and why
        nothing more can come of it, where its time is over."""
        now = asyncio.get_running_loop().time
        ends_s = now() + RENEW_S
        while (left_s := ends_s - now()) > 0:
            try:
                approval = await self._desk.wait(id, left_s, Holding())
            except Declined:
                return None, ""
            except StoreError as error:
                # Said once: there may be thousands that wait.
                if not self._is_told:
                    self._is_told = True
                    log.warning("events go on waiting for approvals, which cannot be read: %s", error)
                await asyncio.sleep(AGAIN_S)
            else:
                self._is_told = False
                state = approval.state_at(self._desk.clock())
                return state, _why(approval) if state is State.EXPIRED else ""
        return State.PENDING, ""


def _why(approval: Approval) -> str:
    if len(approval.allowed_by) >= approval.quorum:
        return f"what the approval {approval.id} allows was not done in time, and it holds no more"
    return f"nobody decided on the approval {approval.id} in time, and no answer is a no"
