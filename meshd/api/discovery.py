"""DiscoveryService: agents register, and find what they may call by what it is wanted for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.api import session_frames as frames
from meshd.api.fields import malformed, seconds
from meshd.discovery.entry import Entry, Sort
from meshd.discovery.versions import matches, range_of, version_of
from meshd.refusal import Reason, Refused
from meshd.sources.allowing import may_call
from meshd.sources.registering import LEASE_MAX_S, LEASE_MIN_S, LEASE_S
from meshd.sources.told import agent_entries
from meshd_sdk.v1 import discovery_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from meshd.api.mesh import Mesh

MATCHES_DEFAULT: Final = 10
MATCHES_MAX: Final = 100
INTENT_CHARACTERS_MAX: Final = 1000
SCORE_MIN: Final = 0.1
"""Below this a match shares no more than a common word with what was asked for."""
TOOLS_MAX: Final = 64
"""Of one agent in an answer."""
WATCHES_MAX: Final = 256
GATHER_S: Final = 0.1
"""How long changes are gathered before a watch is told."""
LOOK_S: Final = 1.0
"""How often a watch sees whether the sidecar drains."""
SIGN_S: Final = 30.0
"""How often a watch without news is written to: whoever has gone is found so."""


class DiscoveryService:
    """Answers for meshd.v1.DiscoveryService."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._watches = 0

    @property
    def _discovering(self) -> Any:
        found = self._mesh.discovering
        if found is None:
            raise Refused(Reason.STORE_UNAVAILABLE, "This sidecar keeps no catalogue.")
        return found

    # ------------------------------------------------------------------ Register

    async def register(self, request: pb.RegisterRequest) -> pb.RegisterResponse:
        """Put an agent into the catalogue, or renew it. Raises Refused: MALFORMED, NOT_ALLOWED for a name that is
        another's, OVERLOADED."""
        discovering = self._discovering
        agent, lease_s = request.agent, LEASE_S
        if request.HasField("lease"):
            lease_s = seconds("lease", request.lease)
            if not LEASE_MIN_S <= lease_s <= LEASE_MAX_S:
                raise malformed("lease", f"from {LEASE_MIN_S:g} to {LEASE_MAX_S:g} seconds")
        if not frames.is_name(agent.name):
            raise malformed("agent.name", "1 to 63 of a-z, 0-9, '-', '_' and '.', and no name of meshd's own")
        if agent.ByteSize() > frames.AGENT_BYTES_MAX:
            raise malformed("agent", f"at most {frames.AGENT_BYTES_MAX} bytes: describe tools in fewer words")
        for version in (agent.version, *(tool.version for tool in agent.tools)):
            if version and version_of(version) is None:
                raise malformed("version", "a semantic version, such as 1.4.2")
        if agent.name in self._mesh.policy.upstreams:
            raise Refused(
                Reason.NOT_ALLOWED,
                f"The name {agent.name} is another's: the policy gives it to an upstream, or an agent has a session "
                "under it. Register under a name of your own.",
            )
        secret = await discovering.registering.register(
            agent.name, agent_entries(agent), lease_s, request.registration[:256]
        )
        return pb.RegisterResponse(lease=frames.duration(lease_s), registration=secret)

    # ------------------------------------------------------------------ Find

    async def find(self, request: pb.FindRequest) -> pb.FindResponse:
        """Find agents and tools that the token's agent may call. Raises Refused: CONTEXT_INVALID, MALFORMED."""
        return pb.FindResponse(matches=self._find(request))

    def _find(self, request: pb.FindRequest) -> list[pb.Match]:
        agent, policy = self._mesh.read(request.token).agent, self._mesh.policy
        wanted, most = request.version.strip(), request.matches_max or MATCHES_DEFAULT
        if not request.intent.strip() or len(request.intent) > INTENT_CHARACTERS_MAX:
            raise malformed("intent", f"what is wanted, in 1 to {INTENT_CHARACTERS_MAX} characters")
        if most > MATCHES_MAX:
            raise malformed("matches_max", f"at most {MATCHES_MAX}")
        try:
            range_of(wanted)
        except ValueError as error:
            raise Refused(Reason.MALFORMED, f"version: {error}.") from None
        catalogue = self._discovering.wide

        def fits(entry: Entry) -> bool:
            version = entry.version
            if not version and (owner := catalogue.get(Sort.AGENT, entry.owner, entry.owner)) is not None:
                version = owner.version
            return matches(version, wanted)

        found: dict[tuple[str, str], pb.Match] = {}
        # An agent is found by each of its skills, and named once.
        for one in self._discovering.find(request.intent, 4 * most, agent, fits if wanted else None):
            entry: Entry = one.key
            tool = entry.name if entry.sort is Sort.TOOL else ""
            if one.score < SCORE_MIN or len(found) >= most:
                break
            if (entry.owner, tool) not in found:
                tools = [entry] if tool else catalogue.of(entry.owner, Sort.TOOL)
                shown = _agent(catalogue, entry, [one for one in tools if may_call(policy, agent, one)])
                found[entry.owner, tool] = pb.Match(agent=shown, tool=tool, score=one.score)
        return list(found.values())

    # ------------------------------------------------------------------ Watch

    async def watch(
        self,
        received: AsyncIterator[pb.WatchRequest],
        send: Callable[[pb.WatchResponse], Awaitable[None]],
        peer: str,
    ) -> None:
        """Answer as `find` does, and again whenever that changes. Raises Refused as `find` does."""
        request = await anext(received, None)
        if request is None:
            return
        if self._watches >= WATCHES_MAX:
            raise Refused(Reason.OVERLOADED, f"{WATCHES_MAX} watches are open with this sidecar, and it takes no more.")
        changed = asyncio.Event()
        end = self._discovering.wide.listen(lambda _: changed.set())
        self._watches += 1
        try:
            await self._watch(request.find, changed, send)
        finally:
            self._watches -= 1
            end()

    async def _watch(
        self, find: pb.FindRequest, changed: asyncio.Event, send: Callable[[pb.WatchResponse], Awaitable[None]]
    ) -> None:
        known: dict[tuple[str, str], bytes] = {}
        policy, quiet_s, is_first = self._mesh.policy, 0.0, True
        while not self._mesh.proxy.is_draining:
            if is_first or changed.is_set() or policy is not self._mesh.policy:
                changed.clear()
                policy = self._mesh.policy
                now = {(one.agent.name, one.tool): one for one in self._find(find)}
                news = [one for key, one in now.items() if known.get(key) != one.SerializeToString(deterministic=True)]
                gone = sorted({agent for agent, _ in known} - {agent for agent, _ in now})
                known = {key: one.SerializeToString(deterministic=True) for key, one in now.items()}
                if news or gone or is_first:
                    await send(pb.WatchResponse(changed=news, gone=gone))
                    quiet_s = 0.0
                is_first = False
            try:
                async with asyncio.timeout(LOOK_S):
                    await changed.wait()
                    await asyncio.sleep(GATHER_S)
            except TimeoutError:
                quiet_s += LOOK_S
            if quiet_s >= SIGN_S:
                quiet_s = 0.0
                await send(pb.WatchResponse())
        refused = Refused(Reason.DRAINING, "This sidecar is shutting down: watch again.")
        await send(pb.WatchResponse(end=frames.status_of(refused)))


def _agent(catalogue: Any, found: Entry, tools: list[Entry]) -> pb.Agent:
    """Return who has what was found, with these of its tools: a tool that was found is shown whole."""
    own: Entry | None = catalogue.get(Sort.AGENT, found.owner, found.owner)
    agent = pb.Agent(name=found.owner)
    if own is not None:
        agent.version, agent.description = own.version, own.description
        agent.intents.extend(own.intents)
    agent.tools.extend(_tool(tool, is_whole=tool is found) for tool in tools[:TOOLS_MAX])
    return agent


def _tool(entry: Entry, *, is_whole: bool) -> pb.Tool:
    tool = pb.Tool(
        name=entry.name, description=entry.description, version=entry.version, is_read_only=entry.is_read_only
    )
    if is_whole:
        tool.input_schema = entry.input_schema.decode("utf-8", "replace")
        tool.output_schema = entry.output_schema.decode("utf-8", "replace")
        tool.is_idempotent = _says(entry, "idempotentHint")
    return tool


def _says(entry: Entry, hint: str) -> bool:
    try:
        said = msgspec.json.decode(entry.annotations) if entry.annotations else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return isinstance(said, dict) and said.get(hint) is True
