"""The gateway: the clients, their sessions with the servers, and what all servers have together."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Call, Direction, Rpc, Target
from meshd.discovery.entry import Origin
from meshd.discovery.finder import Finder
from meshd.filters.allow_list import judge
from meshd.gateway import calling, hearing, lists
from meshd.gateway.client import Client, Link
from meshd.gateway.legacy import Talks
from meshd.gateway.listing import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Shown, held_of, renamed
from meshd.gateway.messages import SESSIONED, STATELESS, encode, error, event_of, request
from meshd.gateway.names import Names, may_have
from meshd.gateway.opening import open_link
from meshd.gateway.resolving import resolve, session_unknown
from meshd.gateway.results import Results
from meshd.gateway.tasks import Tasks
from meshd.refusal import Refused
from meshd.telemetry.sources import McpReading

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd.chain import Pending
    from meshd.gateway.listing import Part
    from meshd.gateway.messages import Said
    from meshd.gateway.streams import Stream
    from meshd.gateway.uris import Place
    from meshd.policy.compiled import Policy
    from meshd.proxy.proxy import Proxy
    from meshd.upstream import Upstream

log = logging.getLogger("meshd.gateway")

SESSIONS_MAX: Final = 10_000
"""Of clients: beyond that the one that has been silent for longest is ended."""
IDLE_S: Final = 86_400.0
"""After so long a client that says nothing and does not listen has gone without saying so."""
LOOK_S: Final = 1.0
"""No more often is a name looked for that nobody has: models make them up."""
LOOKED_MAX: Final = 4096
SHOWN_MAX: Final = 64
"""Agents and lists for which it is remembered what they are shown."""
_PARTS: Final = {"tools/call": (TOOLS,), "prompts/get": (PROMPTS,), "completion/complete": (PROMPTS, TEMPLATES)}
"""The lists in which a name may stand, by the method that names it; else those of resources."""
END_S: Final = 5.0


class Gateway:
    """All MCP servers of the policy, behind one address."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.clients: OrderedDict[str, Client] = OrderedDict()
        """By the id of their session, the one that spoke last at the end."""
        self.finder = Finder(proxy.catalogue)
        self.tasks = Tasks()
        self.talks = Talks(self)
        self.info: dict[str, str] = {"name": "meshd", "version": "1"}
        self.saved_tokens = 0
        """Of definitions that were not shown, counted each time that a client lists tools."""
        self.lists = lists.Lists(self)
        self.results = Results(proxy.clock, proxy.later)
        self._agents: dict[str, Client] = {}
        self._policy: Policy | None = None
        self._servers: dict[str, Upstream] = {}
        self._names: Names | None = None
        self._generation = -1
        self._looking: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        """By the agent, the list and the hash of the name: what is called may be long."""
        self._looked: dict[tuple[str, str, int], float] = {}
        """Until when a name is not looked for again."""
        self._shown: dict[tuple[str, str], list[Shown]] = {}
        self._shown_of: Names | None = None
        self._shown_by: Policy | None = None
        self._work: set[asyncio.Task[Any]] = set()
        proxy.telemetry.sources.mcp = lambda: McpReading(len(self.clients), self.saved_tokens, self.results.reading())

    # ------------------------------------------------------------------ what there is

    @property
    def servers(self) -> dict[str, Upstream]:
        """The servers of the policy of the moment, in its order."""
        policy = self.proxy.policy
        if policy is not self._policy:
            self._policy = policy
            servers = {name: one for name, one in policy.upstreams.items() if one.dialect == "mcp"}
            if servers != self._servers:
                for name in self._servers.keys() - servers.keys():
                    self.proxy.catalogue.drop(name, Origin.MCP)
                    self.lists.drop(name)
                self._servers, self._names = servers, None
        return self._servers

    @property
    def only(self) -> str | None:
        """The name of the one server, where there is but one."""
        return next(iter(self.servers)) if len(self.servers) == 1 else None

    @property
    def names(self) -> Names:
        """What everything is called, as it is known now."""
        servers, catalogue = self.servers, self.proxy.catalogue
        if self._names is None or self._generation != catalogue.generation:
            entries = [entry for entry in catalogue if entry.owner in servers and entry.origin is Origin.MCP]
            names = Names(servers, entries)
            known = set() if self._names is None else set(self._names.refused)
            for refused in names.refused:
                if refused not in known:
                    log.warning(
                        "%s of %s is not listed: %s has that name. Set another prefix for one of them",
                        refused.name[:128],
                        refused.server,
                        refused.taken_by,
                    )
            self._names, self._generation = names, catalogue.generation
        return self._names

    def may(self, policy: Policy, agent: str, operation: str, place: Place) -> bool:
        """Say whether the policy lets an agent call something: what it may not call, it is not shown."""
        upstream = self.servers.get(place.server)
        if upstream is None:
            return False
        target = Target(upstream.kind, upstream.name)
        tool = place.entry.name if operation == "tools/call" else ""
        allow = policy.plan(target, agent, operation, tool).allow
        if allow is None:
            return True
        try:
            judge(_wished(upstream, target, operation, tool), allow)
        except Refused as refused:
            return refused.is_shadow
        return True

    def shown(self, policy: Policy, agent: str, part: Part) -> list[Shown]:
        """Return what an agent may call, in the order of the servers, as it is shown. Worked out once for each."""
        names = self.names
        if self._shown_of is not names or self._shown_by is not policy or len(self._shown) >= SHOWN_MAX:
            self._shown, self._shown_of, self._shown_by = {}, names, policy
        key = agent, part.method
        found = self._shown.get(key)
        if found is None:
            found = self._shown[key] = [
                Shown(name, place, renamed(part, place.entry, name))
                for name, place in held_of(names, part).items()
                if self.may(policy, agent, part.operation, place)
            ]
        return found

    # ------------------------------------------------------------------ calls

    def resolve(self, call: Call) -> Pending | None:
        """Find out for which server a message is: see `meshd.gateway.resolving`."""
        return resolve(self, call)

    def client(self, session: bytes, call: Call) -> Client:
        """Return the client of a session. Raises Refused where it is not this caller's."""
        id = session.decode("latin-1")
        client = self.clients.get(id)
        if client is None or client.peer != call.peer:
            raise session_unknown()
        client.seen_s = self.proxy.now_s
        self.clients.move_to_end(id)
        return client

    def check(self, client: Client, call: Call) -> None:
        """Raise Refused where a session is another agent's, or has ended meanwhile."""
        if client.agent != call.agent or self.clients.get(client.id) is not client:
            raise session_unknown()

    def shared(self, call: Call) -> Client:
        """Return what stands for all calls of one agent that belong to no session."""
        rpc = call.rpc
        if rpc is not None and rpc.method == "initialize":
            return Client("", call.agent, call.peer, SESSIONED[0], b"", is_shared=True)
        return self._of_agent(call.agent)

    def _of_agent(self, agent: str) -> Client:
        client = self._agents.get(agent)
        if client is None:
            client = self._agents[agent] = Client("", agent, "", STATELESS, b"", is_shared=True)
        return client

    def admit(self, client: Client) -> None:
        """Keep a session that was just begun."""
        while len(self.clients) >= SESSIONS_MAX:
            self.dismiss(next(iter(self.clients.values())))
        client.seen_s = self.proxy.now_s
        self.clients[client.id] = client

    def dismiss(self, client: Client) -> None:
        """End a session, and those with the servers that were held for it."""
        self.clients.pop(client.id, None)
        self.results.forget(client.id)
        self.talks.end(client)
        for stream in tuple(client.streams):
            stream.end()
        for link in tuple(client.links.values()):
            self._leave(client, link)
        client.links.clear()

    def _leave(self, client: Client, link: Link) -> None:
        """End a session with a server."""
        hearing.stop(link)
        if link.is_open and link.id:
            link.is_open, fields = False, hearing.fields_of(link)
            self.begin(
                calling.ask(
                    self.proxy, link.upstream, fields, b"", agent=client.agent, timeout_s=END_S, method="DELETE"
                )
            )

    def expire(self, now_s: float) -> None:
        """Called about twice a second: end sessions that nobody has used for long."""
        self.talks.expire(now_s)
        while self.clients and now_s - (client := next(iter(self.clients.values()))).seen_s > IDLE_S:
            if client.streams:
                client.seen_s = now_s
                self.clients.move_to_end(client.id)
            else:
                self.dismiss(client)

    async def open(self, client: Client, upstream: Upstream) -> None:
        """Open the session with a server that a client needs; whoever needs it meanwhile waits for the same.

        Raises Refused.
        """
        link = client.links.get(upstream.name)
        if link is None or link.upstream is not upstream:
            if link is not None:
                self._leave(client, link)
            link = client.links[upstream.name] = Link(upstream)
            link.opening = self.proxy.loop.create_task(self._open(client, link))
            link.opening.add_done_callback(_looked_at)
        assert link.opening is not None
        await asyncio.shield(link.opening)

    async def _open(self, client: Client, link: Link) -> None:
        try:
            await open_link(self.proxy, client, link)
        except BaseException:
            if client.links.get(link.server) is link:
                del client.links[link.server]
            raise
        if client.links.get(link.server) is not link:
            # Its client has gone, or the policy has another address: nobody else would end it.
            self._leave(client, link)
            raise session_unknown()
        hearing.start(self, client, link)

    def forget(self, client: Client, link: Link) -> None:
        """A session with a server is no more."""
        link.is_open = False
        hearing.stop(link)
        if client.links.get(link.server) is link:
            del client.links[link.server]

    async def look(self, client: Client | None, call: Call, name: str) -> None:
        """Ask the servers that may have it for what is called and nobody has listed; all who look wait for the same."""
        rpc = call.rpc
        assert rpc is not None
        parts = _PARTS.get(rpc.method, (RESOURCES, TEMPLATES))
        agent = call.agent or call.policy.agent
        # Agents may list different servers: nobody is told that there is nothing since another could not see it.
        key = agent, parts[0].key, hash(name)
        looking = self._looking.get(key)
        if looking is None:
            now_s = self.proxy.clock()
            if now_s < self._looked.get(key, now_s):
                return
            if len(self._looked) >= LOOKED_MAX:
                self._looked.clear()
            self._looked[key] = now_s + LOOK_S
            asking = self._look(client or self._of_agent(agent), call.policy, agent, parts, name)
            looking = self._looking[key] = self.proxy.loop.create_task(asking)
            looking.add_done_callback(lambda _: self._looking.pop(key, None))
            looking.add_done_callback(_looked_at)
        await asyncio.shield(looking)

    async def _look(self, client: Client, policy: Policy, agent: str, parts: tuple[Part, ...], name: str) -> None:
        is_name = RESOURCES not in parts and "://" not in name
        servers = may_have(self.servers, name) if is_name else list(self.servers.values())
        for part in parts:
            await self.lists.refresh(client, policy, agent, part, servers, is_needed=False)

    async def list_all(self, client: Client, agent: str, part: Part) -> None:
        """Bring one of the lists up to date. Raises Refused where no server answers."""
        servers = list(self.servers.values())
        await self.lists.refresh(client, self.proxy.policy, agent, part, servers, is_needed=True)

    # ------------------------------------------------------------------ what is said unasked

    def attach(self, client: Client | None, stream: Stream, last: bytes = b"") -> None:
        """A client listens; `last` is the id of the event that it has heard last, empty for a new stream."""
        assert client is not None
        client.streams.append(stream)
        if client.talk is not None:
            self.talks.attach(client, stream)
        stream.ended = self.detach
        server, id = event_of(last)
        link = client.links.get(server)
        if link is not None and link.is_open:
            hearing.resume(self, client, link, stream, id)
        for link in tuple(client.links.values()):
            if link.is_open:
                hearing.start(self, client, link)
        if client.is_shared:
            # Nothing else opens sessions for one who only listens.
            for upstream in self.servers.values():
                if upstream.name not in client.links:
                    self.begin(self.open(client, upstream))

    def detach(self, stream: Stream) -> None:
        """A client listens no more."""
        if stream.resuming is not None:
            stream.resuming()
        for client in (*tuple(self.clients.values()), *self._agents.values()):
            if stream in client.streams:
                client.streams.remove(stream)
                if not client.streams:
                    for link in client.links.values():
                        hearing.stop(link)
                    if client.talk is not None:
                        self.dismiss(client)

    def changed(self, server: str) -> None:
        """A server says that it has other things than before: what it had last is not trusted any more."""
        self.lists.changed(server)

    def uri_of(self, server: str, uri: str) -> str:
        """Return by which URI a server's resource is known here."""
        return self.names.uris.known_as(server, uri)

    @staticmethod
    def encoded(text: str) -> bytes:
        """Return JSON."""
        return encode(text)

    def tell_all(self, client: Client, message: bytes, *, level: bytes = b"") -> None:
        """Pass something on to every server with which a client has a session."""
        for link in client.links.values():
            if not link.is_open or link.version >= STATELESS:
                continue
            body = request(client.next_id(), "logging/setLevel", level) if level else message
            self.tell(client, link, body)

    def tell(self, client: Client, link: Link, body: bytes) -> None:
        """Send a server a message, for whose answer nobody waits."""
        fields = hearing.fields_of(link)
        self.begin(calling.ask(self.proxy, link.upstream, fields, body, agent=client.agent, timeout_s=END_S))

    def decline(self, client: Client, link: Link, said: Said) -> None:
        """Tell a server that nobody can answer what it asks: its client has no session to be asked in."""
        body = error(said.id, -32601, f"The client of this call cannot be asked for {said.method[:64]}")
        self.tell(client, link, body)

    def saved(self, tokens: int) -> None:
        """Count definitions that a model was spared."""
        self.saved_tokens += tokens

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for."""
        task = self.proxy.loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        task.add_done_callback(_looked_at)

    def drain(self) -> None:
        """End the streams on which clients listen: they open others, elsewhere or later."""
        for client in (*self.clients.values(), *self._agents.values()):
            for stream in tuple(client.streams) if not self.talks.drain(client) else ():
                self.proxy.run(stream.end)
            for link in client.links.values():
                hearing.stop(link)

    def close(self) -> None:
        """End what goes on by itself."""
        for task in self._work:
            task.cancel()


def _wished(upstream: Upstream, target: Target, operation: str, tool: str) -> Call:
    """Return as much of a call as the allow-list looks at."""
    call = Call("", Direction.OUTBOUND, "POST", upstream.endpoint, "", [], 0.0, 0.0)
    call.upstream, call.target, call.rpc = upstream, target, Rpc("mcp", operation, tool=tool)
    return call


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Take note of a failure that somebody else is told of, or nobody."""
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.debug("the gateway: %s", failure)
