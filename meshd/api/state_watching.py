"""Watching objects: each is sent when it is asked for, and again when it changes."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from meshd.api import session_frames as frames
from meshd.api.state_judging import Asked, Judging
from meshd.api.state_messages import shown
from meshd.refusal import Reason, Refused
from meshd.state.access import Act
from meshd_sdk.v1 import state_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from meshd.api.state_noting import Noting

WATCHES_MAX: Final = 256
LOOK_S: Final = 1.0
"""How often a watch sees whether the sidecar drains."""
SIGN_S: Final = 30.0
"""How often a watch without news reads all the same, and is written to: whoever has gone is found so."""


class StateWatch(Judging):
    """The stream of StateService."""

    async def watch_state(
        self,
        received: AsyncIterator[pb.WatchStateRequest],
        send: Callable[[pb.WatchStateResponse], Awaitable[None]],
        peer: str,
    ) -> None:
        """Send an object, and again when it changes."""
        request = await anext(received, None)
        if request is None:
            return
        with self._noting("watch") as noting:
            asked = self._asked(noting, request.token, request.key, Act.READ)
            known = self._number("known_version", request.known_version)
            watching = self._state.watching
            if watching.count >= WATCHES_MAX:
                raise Refused(
                    Reason.OVERLOADED, f"{WATCHES_MAX} watches are open with this sidecar, and it takes no more."
                )
            changed = asyncio.Event()
            end = await watching.listen(str(asked.key), changed.set)
            try:
                await self._watch(noting, asked, known, changed, send)
            finally:
                end()

    async def _watch(
        self,
        noting: Noting,
        asked: Asked,
        known: int,
        changed: asyncio.Event,
        send: Callable[[pb.WatchStateResponse], Awaitable[None]],
    ) -> None:
        state, quiet_s, is_due = self._state, 0.0, True
        told_s = math.inf
        """When the last version that was sent was written."""
        while not self._mesh.proxy.is_draining:
            if is_due or changed.is_set():
                changed.clear()
                self._check(asked.key, Act.READ, asked.who)
                head = await state.objects.living(asked.place)
                newest = head.versions[0] if head.versions else None
                if newest is None or (newest.number < known and newest.written_s > told_s):
                    known = 0  # it had expired, and begins anew
                if newest is not None and newest.number > known:
                    value = b"" if newest.is_deleted else await state.objects.value(asked.place, newest)
                    if value is None:
                        continue  # a newer one is there already
                    known, told_s, quiet_s = newest.number, newest.written_s, 0.0
                    state.knowing.read(asked.who.workflow, newest)
                    noting.read(newest, "found")
                    await send(pb.WatchStateResponse(object=shown(str(asked.key), newest, value)))
                is_due = False
            try:
                async with asyncio.timeout(LOOK_S):
                    await changed.wait()
            except TimeoutError:
                quiet_s += LOOK_S
                await state.watching.look()
            if quiet_s >= SIGN_S:
                quiet_s, is_due = 0.0, True
                await send(pb.WatchStateResponse())
        refused = Refused(Reason.DRAINING, "This sidecar is shutting down: watch again.")
        await send(pb.WatchStateResponse(end=frames.status_of(refused)))
