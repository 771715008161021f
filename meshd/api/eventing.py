"""Events beside the services: what the admin port and a scrape see of the bus, and who hands events out by itself."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from meshd.api.cloud_events import structured
from meshd.engines.bus_port import PLACE_MAX, EventMalformed
from meshd.engines.port import Ability, StoreError
from meshd.policy.report import nearest
from meshd.telemetry.sources import EventsReading
from meshd.trace import acts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from meshd.api.mesh import Mesh
    from meshd.engines.bus_port import Bus, DeadLetter, Position
    from meshd.policy.compiled import Policy

LOOK_S: Final = 10.0
"""How often the groups are looked at for the metrics, once the bus is open."""
GROUPS_MAX: Final = 50
"""Groups that have metrics of their own."""
BEHIND_MAX: Final = 1000
"""Events behind a group's place that are counted; more are as many."""
DEAD_PAGE: Final = 500
log = logging.getLogger("meshd.events")


class Eventing:
    """One for the process."""

    def __init__(self, mesh: Mesh, others: Sequence[Callable[[Mesh], Any]] = ()) -> None:
        """`others` make further ones that hand events out: they have `take(policy)` and `end(grace_s)`."""
        self._mesh = mesh
        self._others = [one(mesh) for one in others]
        self._pushing: Any = None
        self._lags: list[tuple[Position, int]] = []
        self._task: asyncio.Task[None] | None = None
        mesh.telemetry.sources.events = self.reading
        if mesh.bus is not None:
            mesh.bus.unheard = self._buried

    @property
    def _bus(self) -> Bus:
        bus: Bus = self._mesh.bus
        return bus

    def take(self, policy: Policy) -> None:
        """Hand out what a policy names, and end what it names no more."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look())
        if self._pushing is None and policy.subscriptions:
            # Not before: what contexts of events are made with takes protobuf, and most sidecars have none.
            from meshd.api.pushing import Pushing

            self._pushing = Pushing(self._mesh)
        for one in self._all():
            one.take(policy)

    async def end(self, grace_s: float) -> None:
        """Hand out no more; let what is under way end for at most `grace_s` seconds."""
        if self._task is not None:
            self._task.cancel()
        await asyncio.gather(*[one.end(grace_s) for one in self._all()])
        if self._mesh.aside is not None:
            self._mesh.aside.end()

    def _all(self) -> list[Any]:
        return [*self._others, *filter(None, [self._pushing])]

    def _buried(self, letter: DeadLetter) -> None:
        # Not before: it takes protobuf, and most sidecars have no events.
        from meshd.api.handing import buried

        buried(self._mesh, letter)

    # ------------------------------------------------------------------ metrics

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            # A bus that nobody has used is not opened for it.
            if self._bus.name:
                try:
                    self._lags = await self._looked()
                except StoreError as error:
                    log.warning("the groups of the bus cannot be looked at: %s", error)

    async def _looked(self) -> list[tuple[Position, int]]:
        found = []
        for one in (await self._bus.positions())[:GROUPS_MAX]:
            behind = 0
            if Ability.REPLAYS in self._bus.abilities:
                behind = await self._bus.behind(one.topic, int(one.sequence), BEHIND_MAX)
            found.append((one, behind + one.waiting + one.under_way))
        return found

    def reading(self) -> EventsReading:
        """Return what a scrape shows."""
        counts = self._mesh.event_counts
        return EventsReading(
            published=tuple(counts.published.items()),
            handed=tuple(((topic,), many) for topic, many in counts.handed_out.items()),
            settled=tuple(counts.settled.items()),
            refused=tuple(counts.refusals.items()),
            led=tuple(((choice,), many) for choice, many in counts.led.items()),
            dead=tuple(((one.group, one.topic), one.dead) for one, _ in self._lags),
            lag=tuple(((one.group, one.topic), lag) for one, lag in self._lags),
        )

    # ------------------------------------------------------------------ the admin port (`meshd.admin.events`)

    async def topics(self) -> list[dict[str, Any]]:
        """Return topics that have events."""
        return [dict(one._asdict()) for one in await self._bus.topics()]

    async def groups(self) -> list[dict[str, Any]]:
        """Return the groups, with what waits for each."""
        self._lags = await self._looked()
        lags = {(one.group, one.topic): lag for one, lag in self._lags}
        return [{**one._asdict(), "lag": lags.get((one.group, one.topic))} for one in await self._bus.positions()]

    async def dead(self, group: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Return dead letters, oldest first."""
        groups = [group] if group else sorted({one.group for one in await self._bus.positions() if one.dead})
        letters = [one for name in groups for one in await self._bus.dead_letters(name, after, limit)]
        return [
            {
                "id": one.id,
                "group": one.group,
                "topic": one.topic,
                "attempts": one.attempts,
                "reason": one.reason,
                "died_s": one.died_s,
                "event_topic": one.event.topic,
                "event": structured(one.event),
            }
            for one in sorted(letters, key=lambda one: one.id)[:limit]
        ]

    async def redrive(self, group: str, ids: Sequence[int] | None) -> int:
        """Hand dead letters to their group again, all without ids; return how many there were. What is redriven is
        written down before the bus is told. Raises EventMalformed for a group that the bus has not."""
        # Not before: see `_buried`.
        from meshd.api.handing import workflow_of

        trace = self._mesh.telemetry.provenance.trace
        redriven = 0
        async for letters in self._letters(group, ids):
            if trace is not None:
                for one in letters:
                    acts.redriven(trace, one, workflow_of(self._mesh, one.event))
            redriven += await self._bus.redrive(group, [one.id for one in letters])
        if not redriven:
            await self._check_group(group)
        return redriven

    async def _check_group(self, group: str) -> None:
        """A name that is mistyped must not look as if all were redriven."""
        known = sorted({one.group for one in await self._bus.positions()})
        if group not in known:
            raise EventMalformed("group", f"there is no group {group!r}{nearest(group, known)}")

    async def _letters(self, group: str, ids: Sequence[int] | None) -> AsyncIterator[list[DeadLetter]]:
        """Yield pages of a group's dead letters: those of these ids, or, without any, all that there are now."""
        wanted = None if ids is None else sorted({id for id in ids if 0 < id < PLACE_MAX})
        after = 0
        while wanted is None or wanted:
            if wanted:
                after = max(after, wanted[0] - 1)
            # No more than is asked for: each may have a megabyte.
            page = DEAD_PAGE if wanted is None else min(DEAD_PAGE, len(wanted))
            letters = await self._bus.dead_letters(group, after, page)
            chosen = letters if wanted is None else [one for one in letters if one.id in wanted]
            if chosen:
                yield chosen
            # Those that die again meanwhile have greater ids: the newest of now is where it ends.
            if len(letters) < page:
                return
            after = letters[-1].id
            if wanted is not None:
                wanted = [id for id in wanted if id > after]

    async def kept(self, topic: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Return events that are kept."""
        # An event may have an extension of this name.
        return [{**structured(one), "topic": one.topic} for one in await self._bus.kept(topic, after, limit)]

    async def latest(self) -> str:
        """Return the newest event's sequence."""
        return max((one.latest for one in await self._bus.topics()), default="")
