"""The catalogue as the daemon puts it together: who is asked, what is kept, with whom it is shared, who sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from meshd.discovery.catalogue import Catalogue
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.finder import Finder
from meshd.discovery.told import Told
from meshd.engines.port import StoreError
from meshd.filters.breaker import Breaker
from meshd.intent.barring import Health
from meshd.intent.resolver import Resolver
from meshd.intent.showing import routed
from meshd.sources.admitting import Admitting
from meshd.sources.agent_card import AgentCards
from meshd.sources.allowing import may_call
from meshd.sources.asking import Failed
from meshd.sources.labels import labelled
from meshd.sources.mcp_server import McpServer
from meshd.sources.pinned import MARK, Shelf
from meshd.sources.pinned import SPACE as PINS
from meshd.sources.registering import Registering
from meshd.sources.sharing import Sharing
from meshd.sources.showing import Showing
from meshd.sources.tending import TERMS, State, Tending, Terms
from meshd.sources.told import agent_entries, told_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from meshd.admin.catalogue_view import RouteDump
    from meshd.api.mesh import Mesh
    from meshd.discovery.index import Found
    from meshd.engines.port import Store
    from meshd.ledger import Ledger
    from meshd.policy.compiled import Policy
    from meshd.proxy.proxy import Proxy
    from meshd.sources.asking import Source
    from meshd.upstream import Upstream

log = logging.getLogger("meshd.discovery")

WATCH_AGAIN_S = 5.0
GOODBYE_S = 1.0
"""For ending sessions with servers, all of them together."""
_NOTHING = Told()


class Discovering:
    """One for the process."""

    def __init__(
        self,
        proxy: Proxy,
        ledger: Callable[[], Ledger],
        telemetry: Any = None,
        *,
        terms: Terms = TERMS,
        labels: tuple[Path, ...] = (),
    ) -> None:
        """`ledger` returns the books of the moment; `telemetry` gets what a scrape shows; `labels` are files that say
        what the agent here is for."""
        self._terms = terms
        self._labels = labels
        self._proxy = proxy
        self._ledger = ledger
        self.catalogue = proxy.catalogue
        """What this sidecar itself has: what stands in it can be called here."""
        self.wide = Catalogue()
        """The same, and what other sidecars have."""
        self._finder = Finder(self.wide)
        self.admitting = Admitting(self.catalogue, Shelf(self._store, self._place), time.time)
        self.registering = Registering(self._store, self.admitting, wall_clock=time.time, spawn=self._spawn)
        self.sharing = Sharing(
            self._store,
            self.catalogue,
            self.wide,
            sidecar=os.urandom(8).hex(),
            agent=lambda: self._mesh.agent if self._mesh is not None else proxy.policy.agent,
            unhealthy=lambda: [owner for owner, one in self.owners() if one.state is State.UNHEALTHY],
            clock=proxy.clock,
            wall_clock=time.time,
        )
        self.tended: dict[tuple[str, Origin], Tending] = {}
        self._keys: dict[tuple[str, Origin], object] = {}
        """Of what each source was made: where that changes, it is made anew."""
        self._running: dict[tuple[str, Origin], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told: frozenset[str] = frozenset()
        breaker = next(one for one in proxy.chain.per_attempt if isinstance(one, Breaker))
        self._taken: Policy | None = None
        self._mesh: Mesh | None = None
        self._address = ""
        self._is_tls = False
        self.intents = proxy.intents = self._resolver(breaker)
        self.view = Showing(
            local=self.catalogue,
            wide=self.wide,
            finder=self._finder,
            admitting=self.admitting,
            sharing=self.sharing,
            tended=self.tended,
            breakers=lambda: breaker.snapshot(proxy.clock()),
            clock=proxy.clock,
            route=self._routed,
        )
        if telemetry is not None:
            telemetry.sources.catalogue = self.view.reading
            telemetry.sources.intents = lambda: self.intents.counts

    def _resolver(self, breaker: Breaker) -> Resolver:
        proxy = self._proxy
        health = Health(
            has_session=lambda name: proxy.agents.named(name) is not None,
            breakers=lambda: breaker.snapshot(proxy.clock()),
            lapsed=lambda: {owner for owner, one in self.owners() if one.state is State.GONE},
            quarantine=lambda: self.admitting.held,
        )
        return Resolver(lambda: proxy.book, proxy.chain.context.speaker, self.wide, health)

    def _routed(self, wanted: str, agent: str) -> RouteDump:
        named = agent or (self._mesh.agent if self._mesh is not None else "")
        return routed(self.intents, self._proxy.policy, wanted, named)

    def _store(self) -> Store | None:
        return self._ledger().store()

    def _place(self, owner: str) -> str:
        upstream = self._proxy.policy.upstreams.get(owner)
        if upstream is None or upstream.is_session:
            return ""
        return upstream.url if upstream.process is None else repr(upstream.process.command)

    def owners(self) -> list[tuple[str, Tending]]:
        """Return who is asked, and how that goes."""
        return [(owner, one) for (owner, _), one in self.tended.items()]

    # ------------------------------------------------------------------ the daemon

    def start(self, mesh: Mesh | None, address: str, *, is_tls: bool = False) -> Showing:
        """Begin to ask; return what the admin port sees. `address` is where the agents' port listens: HOST:PORT."""
        self._mesh, self._address, self._is_tls = mesh, address, is_tls
        if mesh is not None:
            mesh.discovering = self
        # What the gateway lists for its clients is looked at in the same way.
        self._proxy.admit_listed = self.admitting.take
        self._proxy.quarantine = self.admitting.held
        # Like callers, it shares the sweep and the drain.
        self._proxy.sessions.add(self)
        self.take(self._proxy.policy)
        self._spawn(self.sharing.run())
        self._spawn(self._watch_pins())
        return self.view

    def take(self, policy: Policy) -> None:
        """Another document is in force: ask whom it names, and forget whom it does not."""
        self._taken = policy
        wanted: dict[tuple[str, Origin], tuple[object, Callable[[], Source]]] = {}
        told_now: set[str] = set()
        for name, upstream in policy.upstreams.items():
            told = policy.told.get(name, _NOTHING)
            entries = told_entries(upstream, told)
            if entries:
                told_now.add(name)
                self._spawn(self._take(name, Origin.POLICY, entries))
            for origin, made_of, make in self._sources(upstream, told):
                wanted[name, origin] = made_of, make
        agent = self._mesh.agent if self._mesh is not None and self._mesh.agent else policy.agent
        if (own := labelled(agent, self._labels)) and agent not in policy.upstreams:
            told_now.add(agent)
            self._spawn(self._take(agent, Origin.POLICY, own))
        for name in self._told - told_now:
            self.admitting.drop(name, Origin.POLICY)
        self._told = frozenset(told_now)
        for key in [key for key in self.tended if key not in wanted or self._keys[key] != wanted[key][0]]:
            self._end(key)
        for key, (made_of, make) in wanted.items():
            if key not in self.tended:
                one = Tending(key[0], make(), self.admitting, terms=self._terms, clock=self._proxy.clock)
                self.tended[key], self._keys[key] = one, made_of
                self._running[key] = asyncio.get_running_loop().create_task(one.run())

    def _sources(self, upstream: Upstream, told: Told) -> list[tuple[Origin, object, Callable[[], Source]]]:
        proxy, name = self._proxy, upstream.name
        found: list[tuple[Origin, object, Callable[[], Source]]] = []
        is_asked = told.is_asked is not False and not upstream.is_session
        at = (upstream.url, upstream.dialect, upstream.process, upstream.is_sse)
        if is_asked and upstream.dialect == "mcp":
            found.append((Origin.MCP, at, lambda: McpServer(proxy, name)))
        if is_asked and upstream.dialect == "a2a":
            found.append((Origin.A2A, at, lambda: AgentCards(proxy, name)))
        if told.openapi:
            found.append((Origin.OPENAPI, (*at, told.openapi), lambda: _open_api(proxy, name, told.openapi)))
        if told.is_reflected:
            if self._is_tls:
                log.warning("%s is not asked to reflect its services: the agents' port speaks TLS", name)
            else:
                found.append((Origin.REFLECTION, (*at, self._address), lambda: _reflection(self._address, name)))
        return found

    def _end(self, key: tuple[str, Origin]) -> None:
        one = self.tended.pop(key)
        del self._keys[key]
        self._running.pop(key).cancel()
        self.admitting.drop(*key)
        self._spawn(one.source.close())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, owner: str, origin: Origin, entries: list[Entry]) -> None:
        try:
            await self.admitting.take(owner, origin, entries)
        except Failed as failed:
            log.warning("%s is not in the catalogue: %s", owner, failed)

    async def _watch_pins(self) -> None:
        """Hear of approvals at other sidecars."""
        watched: Store | None = None
        while True:
            try:
                store = self._store()
                if store is not None and store is not watched:
                    await store.watch(PINS, self._pins_changed)
                    watched = store
            except StoreError as error:
                log.debug("pins are not watched: %s", error)
            await asyncio.sleep(WATCH_AGAIN_S)

    def _pins_changed(self, key: str) -> None:
        owner = key.partition(MARK)[0]
        for one in [owner] if owner else [known for known, _ in self.admitting.standings]:
            self._spawn(self._judge_again(one))

    async def _judge_again(self, owner: str) -> None:
        try:
            await self.admitting.judge_again(owner)
        except Failed as failed:
            log.debug("%s was not judged again: %s", owner, failed)

    def expire(self, now_s: float) -> None:
        """Called about twice a second: see whether another document is in force, and who has not registered anew."""
        if self._taken is not self._proxy.policy and not self._proxy.is_draining:
            self.take(self._proxy.policy)
        self.registering.expire()

    def drain(self) -> None:
        """The drain begins: ask nobody any more, or it would wait for what has no end."""
        for task in self._running.values():
            task.cancel()

    def close_now(self) -> None:
        """See `drain`."""
        self.drain()
        self._proxy.sessions.discard(self)

    async def close(self) -> None:
        """Stop, and take back what other sidecars were told."""
        self.close_now()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._running.values(), return_exceptions=True)
        try:
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.gather(*(one.source.close() for _, one in self.owners()), return_exceptions=True)
        except TimeoutError:
            pass  # Its session ends by itself.
        await self.sharing.close()

    # ------------------------------------------------------------------ agents

    def agent_told(self, agent: Any) -> None:
        """An agent has said in its session what it is: a `meshd.v1.Agent`."""
        self.registering.yield_to(agent.name)
        self._spawn(self._take(agent.name, Origin.SESSION, agent_entries(agent)))

    def agent_gone(self, name: str) -> None:
        """Its last session is over."""
        self.admitting.drop(name, Origin.SESSION)

    # ------------------------------------------------------------------ whoever looks

    def allowed(self, agent: str, sort: Sort | None = None) -> list[Entry]:
        """Return what `agent` may call here by the policy in force, owner by owner; nothing that is in quarantine."""
        policy = self._proxy.policy
        return [one for one in self.catalogue if sort in (None, one.sort) and may_call(policy, agent, one)]

    def find(self, words: str, k: int, agent: str, admit: Callable[[Entry], bool] | None = None) -> list[Found[Entry]]:
        """Return at most `k` entries for `words`, the best first: agents, tools and skills that `agent` may call."""
        policy = self._proxy.policy

        def may(entry: Entry) -> bool:
            return (admit is None or admit(entry)) and may_call(policy, agent, entry)

        return self._finder.find(words, k, sorts=(Sort.AGENT, Sort.TOOL, Sort.SKILL), admit=may)


def _open_api(proxy: Proxy, name: str, place: str) -> Source:
    from meshd.sources.openapi import OpenApi

    return OpenApi(proxy, name, place)


def _reflection(address: str, name: str) -> Source:
    from meshd.sources.reflection import Reflection

    return Reflection(address, name)
