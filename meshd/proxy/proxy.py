"""What all connections of one sidecar share: the policy of the moment, the chain, the pools, the calls alive.

A callback of the event loop that may write begins with `enter` and ends with `leave`, which writes what it left: once
for a head and its body, or for all streams of an HTTP/2 connection. Where callbacks come thick, all that they left is
written at the next turn of the loop: peers that sleep are then woken once a turn in place of once a call.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from meshd.discovery.catalogue import Catalogue
from meshd.policy.addressing import AddressBook
from meshd.proxy.agents import Agents
from meshd.proxy.card_answer import Cards
from meshd.proxy.crash import crash, ending
from meshd.proxy.heuristics import Heuristics
from meshd.proxy.pool import Pools
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from meshd.call import Direction
    from meshd.chain import Chain, Pending
    from meshd.discovery.entry import Entry, Origin
    from meshd.filters.contract import Ticket
    from meshd.gateway.gateway import Gateway
    from meshd.policy.compiled import Policy
    from meshd.proxy.arrival import Intents
    from meshd.proxy.exchange import Exchange
    from meshd.proxy.incoming import Incoming
    from meshd.proxy.quarantine import Held
    from meshd.telemetry.telemetry import Telemetry
    from meshd.trace.log import Log
    from meshd.upstream import Upstream

BUSY_S: Final = 0.0001
"""Callbacks nearer than this to one another share their writes. Below some 10,000 a second each writes at once, since
another turn of the loop would cost more than it saves."""
SWEEP_S: Final = 0.5
"""How often timeouts are looked at. None is shorter than a second by default, so this is near enough."""


class Flushable(Protocol):
    """A connection with bytes that wait for the end of the current callback."""

    is_dirty: bool

    def flush(self) -> None: ...


class Session(Protocol):
    """A caller's connection, as the sweep and the drain see it."""

    def expire(self, now_s: float) -> None: ...

    def drain(self) -> None:
        """Finish what runs, take nothing new, then close."""
        ...

    def close_now(self) -> None: ...


class Proxy:
    """One sidecar's data plane."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        policy: Policy,
        chain: Chain,
        telemetry: Telemetry,
        app: Upstream | None = None,
        listen_hosts: tuple[str, ...] = (),
    ) -> None:
        self.loop = loop
        self.clock = loop.time
        self.now_s = loop.time()
        """Monotonic seconds at which the current callback began: near enough for all that happens in it."""
        self.wall_clock = time.time
        self.chain = chain
        self.telemetry = telemetry
        self.pools = Pools(self)
        self.agents = Agents()
        self.catalogue = Catalogue()
        """What can be called, as far as it is known here."""
        self.admit_listed: Callable[[str, Origin, list[Entry]], Awaitable[object]] | None = None
        """Looks at what a server offers, and puts it into the catalogue; None where it is put there as it is."""
        self.quarantine: Held = {}
        """What of MCP servers nobody may call."""
        self._gateway: Gateway | None = None
        self.heuristics = Heuristics()
        self.cards = Cards()
        self.intents: Intents | None = None
        """Finds whom a call is for that only says what it wants; None where nobody does."""
        self.live: set[Exchange] = set()
        self.sessions: set[Session] = set()
        self.is_draining = False
        self.endings: set[asyncio.Task[None]] = set()
        """Servers that were started, and have yet to end: see `meshd.bridge`."""
        self.hidden: tuple[str, ...] = ()
        """Files and folders of meshd's own, which none of them may see."""
        self._call_ended = asyncio.Event()
        self._app = app
        self.has_app = app is not None
        """There is an agent to which inbound calls go."""
        self._listen_hosts = listen_hosts
        self._id_prefix = os.urandom(6).hex() + "-"
        self._id_number = 0
        self._dirty: list[Flushable] = []
        self._log = _log_of(telemetry)
        self._is_entered = False
        self._is_scheduled = False
        self._left_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.wishes: dict[Incoming, float] = {}
        """Calls whose body is wished for, and until when; the first one's time is over first."""
        self._is_wish_timed = False
        self._sweeper: asyncio.TimerHandle | None = None
        self.policy = policy
        self._document = policy
        self._guests: dict[str, Upstream] = {}
        self.book = AddressBook(policy, app, listen_hosts)
        self._sweep()

    def swap(self, policy: Policy) -> None:
        """Judge new calls by `policy`; those under way keep the document that they began with."""
        self._document = policy
        self._judge_by_document()
        self.pools.keep_only(tuple(self.policy.upstreams.values()) + ((self._app,) if self._app else ()))

    def admit_guest(self, upstream: Upstream) -> bool:
        """Let an agent that the policy does not know be called by its name, whatever document comes.

        Returns False where the policy gives that name to another address.
        """
        named = self._document.upstreams.get(upstream.name)
        if named is not None and not named.is_session:
            return False
        if self._document.gateway is not None and upstream.name == self._document.gateway.name:
            return False
        # Also where the document names it so: the next one may not.
        self._guests[upstream.name] = upstream
        if named is None:
            self._judge_by_document()
        return True

    def dismiss_guest(self, name: str) -> None:
        """Forget an agent that has gone."""
        guest = self._guests.pop(name, None)
        if guest is not None:
            if name not in self._document.upstreams:
                self._judge_by_document()
            self.pools.drop(guest)

    def _judge_by_document(self) -> None:
        policy = self._document
        if self._guests:
            # A name that the document has is the document's.
            policy = replace(policy, upstreams={**self._guests, **policy.upstreams})
        self.book = AddressBook(policy, self._app, self._listen_hosts)
        self.policy = policy

    @property
    def gateway(self) -> Gateway:
        """What stands before the MCP servers. Made when it is first called."""
        if self._gateway is None:
            from meshd.gateway.gateway import Gateway

            self._gateway = Gateway(self)
        return self._gateway

    def next_id(self) -> str:
        """Return an id for a call: unique among all sidecars, and cheap."""
        self._id_number += 1
        return self._id_prefix + str(self._id_number)

    # ------------------------------------------------------------------ callbacks and flushing

    def enter(self) -> None:
        """A callback of the loop begins."""
        self._is_entered = True
        if self._log is not None:
            self._log.is_gathering = True
        self.now_s = self.clock()

    def leave(self) -> None:
        """A callback of the loop ends: what it left is written now, or with what others leave where they come thick."""
        if self._dirty and not self._is_scheduled:
            moment_s = time.monotonic()
            is_busy = moment_s - self._left_s < BUSY_S
            self._left_s = moment_s
            if is_busy:
                self._is_scheduled = True
                self.loop.call_soon(self._flush)
            else:
                self._flush()
        self._is_entered = False
        if self._log is not None:
            # Whoever appends between two callbacks sends what it appends by another way, and at once.
            self._log.is_gathering = False
            if not self._is_scheduled:
                self._log.commit()

    def commit(self) -> None:
        """Store what the trace has gathered: before the first byte of what it tells of goes out."""
        if self._log is not None:
            self._log.commit()

    def _flush(self) -> None:
        """Write what the callbacks of this turn of the loop have left."""
        self.enter()
        self.commit()
        self._is_scheduled = False
        dirty = self._dirty
        while dirty:
            one = dirty.pop()
            one.is_dirty = False
            one.flush()
        self._is_entered = False
        if self._log is not None:
            self._log.is_gathering = False
            self._log.commit()

    def touch(self, one: Flushable) -> None:
        """Note that `one` has bytes to flush."""
        if not one.is_dirty:
            one.is_dirty = True
            self._dirty.append(one)
            if not self._is_entered:
                self.leave()

    def later(self, delay_s: float, callback: Callable[[], None], exchange: Exchange | None = None) -> asyncio.Handle:
        """Call `callback` after `delay_s` seconds, flushing what it writes. A fault in it ends `exchange`."""
        if delay_s <= 0:
            return self.loop.call_soon(self.run, callback, exchange)
        return self.loop.call_later(delay_s, self.run, callback, exchange)

    def run(self, callback: Callable[[], None], exchange: Exchange | None = None) -> None:
        """Make a call of the loop into one that may write. A fault in it ends `exchange`."""
        self.enter()
        try:
            callback()
        except Exception:  # noqa: BLE001 - whatever it is, the call must end
            crash(exchange)
        finally:
            self.leave()

    def wish(self, exchange: Incoming, wait_s: float) -> None:
        """Call its `wished_enough` after `wait_s`, which is the same for all: one timer of the loop serves them.

        Whoever is met before takes itself out of `wishes`.
        """
        self.wishes[exchange] = self.now_s + wait_s
        if not self._is_wish_timed:
            self._is_wish_timed = True
            self.loop.call_later(wait_s, self._wishes_over)

    def _wishes_over(self) -> None:
        self._is_wish_timed, now_s = False, self.clock()
        for exchange, until_s in tuple(self.wishes.items()):
            # A little early is fine: a timer of its own for each that is due within a millisecond would not be.
            if until_s > now_s + 0.001:
                if not self._is_wish_timed:
                    self._is_wish_timed = True
                    self.loop.call_later(until_s - now_s, self._wishes_over)
                return
            self.wishes.pop(exchange, None)
            self.run(exchange.wished_enough, cast("Exchange", exchange))

    # ------------------------------------------------------------------ waiting

    def wait(self, exchange: Exchange, pending: Pending, tickets: list[Ticket], go_on: Any) -> asyncio.Task[None]:
        """Let one call wait for a filter. No call costs a task but for this, and for `follow`."""
        task = self.loop.create_task(self._wait(exchange, pending, tickets, go_on))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled() and pending.wait is not None:
                # Before it had begun: then nothing in it has run, and nobody else will say so.
                pending.wait.coroutine.close()
                result = _cancelled(exchange)
                self.run(lambda: exchange.waited(tickets, result, go_on, pending.resume_at), exchange)

        task.add_done_callback(ended)
        return task

    async def _wait(self, exchange: Exchange, pending: Pending, tickets: list[Ticket], go_on: Any) -> None:
        result: Any
        assert pending.wait is not None
        try:
            result = await pending.wait.coroutine
        except asyncio.CancelledError:
            result = _cancelled(exchange)
        except Exception as error:  # noqa: BLE001 - whatever a rule ends in, its call must end too
            result = error
        self.run(lambda: exchange.waited(tickets, result, go_on, pending.resume_at), exchange)

    def follow(self, sending: Coroutine[Any, Any, None]) -> None:
        """Let a reply be sent while it is read: a task of one call, as a wait is."""
        task = self.loop.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ time and the end

    def _sweep(self) -> None:
        now_s, wall_s = self.clock(), self.wall_clock()
        self.enter()
        try:
            for exchange in tuple(self.live):
                with ending(exchange):
                    exchange.expire(now_s, wall_s)
            for session in tuple(self.sessions):
                session.expire(now_s)
            self.pools.expire(now_s)
        finally:
            self.leave()
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    async def drain(self, deadline_s: float) -> bool:
        """Finish what runs, for at most `deadline_s` seconds, then end the rest. True where nothing was cut short."""
        self.is_draining = True
        if self._gateway is not None:
            self._gateway.drain()
        for exchange in tuple(self.live):
            exchange.let_go()
        for session in tuple(self.sessions):
            self.run(session.drain)
        try:
            async with asyncio.timeout(deadline_s):
                while self.live:
                    self._call_ended.clear()
                    await self._call_ended.wait()
        except TimeoutError:
            pass
        is_clean = not self.live
        for exchange in tuple(self.live):
            self.run(exchange.shut_down, exchange)
        # Calls that wait for a filter end when their wait does, so that what it took is settled.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._flush()
        return is_clean

    def left(self, exchange: Exchange) -> None:
        """A call has ended."""
        self.live.discard(exchange)
        if exchange.is_caller_gone and exchange.call.passage is not None:
            exchange.call.passage.given_up()
        if self.is_draining:
            self._call_ended.set()

    def count_sessions(self, direction: Direction) -> int:
        """Return how many callers are connected."""
        return sum(1 for session in self.sessions if getattr(session, "direction", None) is direction)

    def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._tasks:
            task.cancel()
        if self._gateway is not None:
            self._gateway.close()
        for session in tuple(self.sessions):
            session.close_now()
        self.pools.close()

    async def ended(self) -> None:
        """Wait, after `close`, until every server that was started has ended: it is killed after two seconds."""
        while self.endings:
            await asyncio.gather(*self.endings, return_exceptions=True)


def _cancelled(exchange: Exchange) -> Refused | None:
    """Return what a wait comes to that is not waited for any more."""
    return None if exchange.is_caller_gone else Refused(Reason.DRAINING, "This sidecar is shutting down")


def _log_of(telemetry: Telemetry) -> Log | None:
    """Return the log of the trace: what calls append to it in one turn of the loop becomes one record."""
    trace = telemetry.provenance.trace
    return None if trace is None else trace.log
