"""The composition root: everything is built here, swapped here, and ended here."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from meshd import heap, register
from meshd import running as registry
from meshd.admin.view import ReloadResult
from meshd.api.eventing import Eventing
from meshd.api.keeping_events import OwnBus
from meshd.api.mesh import Mesh
from meshd.api.state_start import start_state
from meshd.approving import Approving
from meshd.assembly import build_chain
from meshd.books import keep_trying, open_books
from meshd.bridge.telling import tell
from meshd.call import Direction
from meshd.config import Address, ConfigError, cannot_listen
from meshd.discovering import Discovering
from meshd.engines.bus_table import LateBus
from meshd.engines.port import StoreError, StoreUnable
from meshd.filters.bounds import Bounds
from meshd.filters.breaker import Breaker
from meshd.filters.budget import Budget
from meshd.filters.idempotency import Idempotency
from meshd.filters.turns import Turns
from meshd.intent.leading import Leading
from meshd.ledger import Ledger
from meshd.mesh_key import MeshKeyError, MeshKeys
from meshd.policy.addressing import APP
from meshd.policy.document import LoadError, Overrides, load
from meshd.policy.reload import Reloader, Watch
from meshd.policy.upstreams import agent_upstream
from meshd.proxy.errand import repeat
from meshd.proxy.listener import Listener
from meshd.proxy.proxy import Proxy
from meshd.supervisor.ways import supervisor_of
from meshd.telemetry.telemetry import Telemetry
from meshd.tokens.counter import Counter
from meshd.tracing import open_for
from meshd.turns.sharing import Sharing
from meshd.view import DIGEST_DIGITS, View, attach_sources, meshd_version

if TYPE_CHECKING:
    from meshd.admin.server import Servers
    from meshd.api.door import Door
    from meshd.config import Config
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

log = logging.getLogger("meshd")

POLL_S = 1.0
"""How often the policy and the key file are looked at for changes."""
SETTLE_S = 0.1
SETTLE_LOOKS_MAX = 50
TICK_S = 10.0


class StartError(Exception):
    """The sidecar cannot start; the message is for the operator and says what to do."""


def app_upstream(url: str) -> Upstream | None:
    """Return the upstream that inbound calls go to, None where there is no app. Raises StartError."""
    try:
        return agent_upstream(APP, url) if url else None
    except ValueError as error:
        raise StartError(f"--app: {error}") from None


class Daemon:
    """One sidecar."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.listen: Address = config.listen
        self.inbound: Address | None = None
        self.servers: Servers | None = None
        self.bus = LateBus(config.bus, config.home)
        self.own_bus = OwnBus(self.bus, lambda: self.mesh)
        self.door: Door | None = None  # the protobuf API
        self.counter = Counter()
        self._started_s = time.time()
        self.ledger_problem: StoreError | None = None
        """Why the ledger could not be opened at the start; it is tried again and again."""
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------ start

    async def start(self) -> None:
        """Build everything and listen. Raises StartError, LoadError or MeshKeyError with words for the operator."""
        config = self.config
        try:
            config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is no directory" if config.home.exists() else error.strerror
            raise StartError(
                f"the state directory {config.home} cannot be made: {reason}. MESHD_HOME names another one."
            ) from None
        overrides = Overrides(upstreams=config.upstreams, agent=config.agent, hops=config.hops)
        self._watch = Watch(config.policy)
        policy = load(config.policy, accept_unenforced=config.accept_unenforced, overrides=overrides)
        self.reloader = Reloader(policy, config.policy, accept_unenforced=config.accept_unenforced, overrides=overrides)
        self.keys = MeshKeys(config.key_file)
        if self.keys.is_made and config.mesh_key is not None:
            made = "%s was not there, and was made with a new key, %s: who lacks this file knows no context signed here"
            log.warning(made, config.mesh_key, self.keys.ring.signing.id)
        self.ledger = await self._open_ledger()
        self.telemetry = self._open_telemetry(policy)
        self.bounds = Bounds(self.counter)
        self.approving = Approving(
            lambda: self.ledger, lambda: self.reloader.policy, self.own_bus, sidecar=policy.agent
        )
        self.chain = build_chain(
            keys=self.keys,
            ledger=self.ledger,
            agent=config.agent,
            shadowed=self.telemetry.shadowed,
            malformed=self.telemetry.usage_malformed,
            breaker_changed=self._breaker_changed,
            bounds=self.bounds,
            desk=self.approving.desk,
            held=self.approving.held.observe,
            carrying=self.approving.carrying,
            home=config.home,
            trace=self.telemetry.provenance.trace,
        )
        await self._listen(policy)
        self.approving.start(self.mesh)
        for warning in policy.warnings:
            log.warning("%s", warning)
        tell(policy, self.proxy.hidden)
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(self._poll()), loop.create_task(self._tick()), start_state(self.mesh)]
        if self.ledger_problem is not None:
            self._tasks.append(loop.create_task(keep_trying(config.home, config.store, self.ledger_problem, self._use)))
        heap.tune()

    async def _open_ledger(self) -> Ledger:
        try:
            return await open_books(self.config.home, self.config.store)
        except StoreUnable as error:
            raise StartError(f"--store: {error}") from None
        except StoreError as error:
            log.error("the ledger cannot be opened, so every budget refuses: %s", error)
            self.ledger_problem = error
            return Ledger.failed(error)

    def _use(self, ledger: Ledger) -> None:
        """Take books that could not be opened at the start."""
        ledger.refused += self.ledger.refused
        self.ledger = ledger
        self.chain.keep_books(ledger)
        self.view.ledger = self.mesh.ledger = ledger

    def _open_telemetry(self, policy: Policy) -> Telemetry:
        from meshd.telemetry import endpoint

        try:
            telemetry = Telemetry(
                version=meshd_version(),
                agent=policy.agent,
                otlp_endpoint=endpoint.traces_url(),
                ratio=self.config.sample_ratio,
            )
            open_for(self.config, self.keys, telemetry)
        except ValueError as error:
            raise StartError(f"spans cannot be exported: {error}") from None
        except StoreError as error:
            raise StartError(f"MESHD_TRACE: the trace must be kept, and cannot be: {error}") from None
        telemetry.policy_taken()
        return telemetry

    async def _listen(self, policy: Policy) -> None:
        from meshd.admin import server as admin
        from meshd.admin.token import TokenError

        config = self.config
        app = app_upstream(config.app)
        loop = asyncio.get_running_loop()
        self.proxy = proxy = Proxy(
            loop, policy=policy, chain=self.chain, telemetry=self.telemetry, app=app, listen_hosts=(config.listen.host,)
        )
        self.discovering = Discovering(self.proxy, lambda: self.ledger, self.telemetry, labels=config.labels)
        self.proxy.hidden = tuple(map(str, (config.home, config.key_file, *filter(None, [config.tls_key]))))
        self.approving.carrying.send = partial(repeat, self.proxy)
        self.listen = await self._open_port(Direction.OUTBOUND, config.listen)
        self.proxy.cards.open(config.home, is_tls=config.tls_cert is not None, port=self.listen.port)
        if app is not None:
            self.inbound = await self._open_port(Direction.INBOUND, config.inbound)
        breaker = next(one for one in self.chain.per_attempt if isinstance(one, Breaker))
        budget = next(one for one in self.chain.per_attempt if isinstance(one, Budget))
        turns = next(one for one in self.chain.per_call if isinstance(one, Turns))
        attach_sources(self.telemetry, self.reloader, lambda: self.ledger, breaker, budget, self.bounds, turns)
        number = int.from_bytes(os.urandom(4), "big") | 1  # of this process alone: what it counts outlives it
        self.sharing = turns.sharing = Sharing(
            turns.book, lambda: self.ledger.store(), number, time.time, loop.time, lambda: proxy.policy.turns_span_s
        )
        self._tasks.append(loop.create_task(self.sharing.run()))
        asker = supervisor_of(proxy, self.own_bus, self.telemetry, self.approving.desk, lambda: self.ledger.holder)
        self.supervisor = turns.supervisor = asker
        idempotency = next(one for one in self.chain.per_call if isinstance(one, Idempotency))
        self.telemetry.sources.claims = lambda: idempotency.book.results
        view = self.view = View(
            agent=config.agent,
            reloader=self.reloader,
            ledger=self.ledger,
            breaker=breaker,
            telemetry=self.telemetry,
            proxy=self.proxy,
            started_s=self._started_s,
            reload=self.reload,
            stop=self.stop,
            desk=self.approving.desk,
        )
        self.telemetry.sources.approvals = self.approving.read
        try:
            self.servers = await admin.start(
                view,
                self.telemetry,
                state_dir=config.home,
                metrics=(config.metrics.host, config.metrics.port),
                admin=(config.admin.host, config.admin.port),
                hosts=policy.hosts_allowed,
            )
        except (admin.AdminError, TokenError) as error:
            raise StartError(str(error)) from None
        await self._open_api()
        self._register(self.servers)

    async def _open_api(self) -> None:
        from meshd.api.door import Door, DoorError

        self.mesh = Mesh(
            proxy=self.proxy,
            chain=self.chain,
            keys=self.keys,
            ledger=self.ledger,
            telemetry=self.telemetry,
            agent=self.config.agent,
            bus=self.bus,
            desk=self.approving.desk,
        )
        self.view.catalogue = self.discovering.start(self.mesh, str(self.listen), is_tls=bool(self.config.tls_cert))
        self.eventing = self.view.events = Eventing(self.mesh, (Leading,))
        self.eventing.take(self.proxy.policy)
        if self.config.api is not None:
            self.door = Door(self.mesh, home=self.config.home)
            try:
                await self.door.start(self.config.api)
            except DoorError as error:
                raise StartError(str(error)) from None

    def _register(self, servers: Servers) -> None:
        """Say in the state directory where we are, for `meshd exec`."""
        told = register.running(
            self.config, self.reloader.policy, str(self.listen), servers, self.door, started_s=self._started_s
        )
        register.tell(self.config.home, told)

    async def _open_port(self, direction: Direction, address: Address) -> Address:
        listener = Listener(self.proxy, direction)
        try:
            host, port = await listener.start(address, self._tls())
        except OSError as error:
            setting = "--listen or MESHD_LISTEN" if direction is Direction.OUTBOUND else "MESHD_INBOUND"
            raise StartError(f"{address} cannot be listened on: {cannot_listen(error, setting)}") from None
        self._listeners.append(listener)
        return Address(host, port)

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.tls_cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            context.load_cert_chain(self.config.tls_cert, self.config.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"MESHD_TLS_CERT {self.config.tls_cert} cannot be used: {error}") from None
        return context

    # ------------------------------------------------------------------ while it runs

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            if self._watch.changed():
                # A file that is written in place is read once it has stayed as it is for a moment.
                for _ in range(SETTLE_LOOKS_MAX):
                    await asyncio.sleep(SETTLE_S)
                    if not self._watch.changed():
                        break
                await self.reload()
            if self.keys.is_changed():
                self._reload_keys()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.telemetry.tick()

    def _reload_keys(self) -> None:
        try:
            if self.keys.reload():
                log.info("the mesh keys were read anew from %s", self.keys.path)
        except MeshKeyError as error:
            log.error("%s", error)

    def _breaker_changed(self, key: Any, before: Any, after: Any) -> None:
        fields = {"upstream": key.upstream, "model": key.model, "was": before.value}
        log.warning("breaker %s", after.value, extra={"fields": fields})

    async def reload(self) -> ReloadResult:
        """Read the policy anew; keep the old document where that fails."""
        # One after the other, and in a thread: a large document takes tens of milliseconds, in which calls would wait.
        async with self._reloading:
            policy = await asyncio.to_thread(self.reloader.reload)
            return self._take(policy)

    def _take(self, policy: Policy | None) -> ReloadResult:
        digest = self.reloader.policy.digest
        if policy is None:
            self.telemetry.policy_refused()
            log.error("the new policy was not taken, the one before stays in force: %s", self.reloader.error)
            return ReloadResult(is_taken=False, digest=digest, problems=self.reloader.error.splitlines())
        self.proxy.swap(policy)
        if self.servers is not None:
            self._register(self.servers)
        self.eventing.take(policy)
        self.telemetry.policy_taken()
        tell(policy, self.proxy.hidden)
        log.info("policy taken from %s (%s)", policy.source, digest[:DIGEST_DIGITS])
        return ReloadResult(is_taken=True, digest=digest)

    def stop(self) -> None:
        """Ask for the end: `serve` then drains."""
        self._stop.set()

    async def serve(self) -> None:
        """Run until asked to stop, then drain and close."""
        await self._stop.wait()
        for listener in self._listeners:
            listener.stop()
        drain_s = self.config.drain_s
        if drain_s is None:
            drain_s = self.reloader.policy.limits.drain_s
        api = [self.door.drain(drain_s)] if self.door is not None else []
        api.append(self.eventing.end(drain_s))
        if not (await asyncio.gather(self.proxy.drain(drain_s), *api))[0]:
            log.warning("the drain's deadline of %g s passed with calls under way", drain_s)
        await self.close()

    async def close(self) -> None:
        """End everything, in the order in which nothing is lost: calls, events, books, spans."""
        for task in self._tasks:
            task.cancel()
        if hasattr(self, "discovering"):
            await self.discovering.close()
            self.proxy.close()
            await self.proxy.ended()
        if self.door is not None:
            await self.door.close()
        if hasattr(self, "eventing"):
            await self.eventing.end(0.0)
        if self.servers is not None:
            await self.servers.close()
        if hasattr(self, "supervisor"):
            self.supervisor.close()
        if hasattr(self, "approving"):
            await self.approving.close()
        await self.bus.close()
        if hasattr(self, "sharing"):
            await self.sharing.close()
        if hasattr(self, "chain"):
            await self.chain.close_books()
        if hasattr(self, "ledger"):
            await self.ledger.close()
        self.counter.close()
        if hasattr(self, "telemetry"):
            await asyncio.to_thread(self.telemetry.close)
        registry.remove(self.config.home, os.getpid())


__all__ = ["ConfigError", "Daemon", "LoadError", "MeshKeyError", "StartError"]
