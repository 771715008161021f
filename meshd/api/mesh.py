"""What the services see of the daemon around them, and the two acts that they need: issue a token, and read one."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from meshd.api.event_counts import EventCounts
from meshd.api.setting_aside import SettingAside
from meshd.call import Kind
from meshd.filters.minting import TOKEN_LIFE_S, moved, refused
from meshd.filters.turns import Turns
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.approvals.desk import Desk
    from meshd.chain import Chain
    from meshd.ledger import Ledger
    from meshd.mesh_key import MeshKeys
    from meshd.policy.compiled import Policy
    from meshd.proxy.proxy import Proxy
    from meshd.state.keeping import Keeping
    from meshd.telemetry.telemetry import Telemetry
    from meshd.trace.acts import Actor


class Mesh:
    """One sidecar, as the services of the API know it."""

    __slots__ = (
        "_agent", "_random_bytes", "aside", "bus", "chain", "desk", "discovering", "event_counts", "events", "funded",
        "joined", "judged", "keys", "last_attempts", "ledger", "proxy", "state", "telemetry", "traces", "turns",
        "wall_clock",
    )  # fmt: skip

    def __init__(
        self,
        *,
        proxy: Proxy,
        chain: Chain,
        keys: MeshKeys,
        ledger: Ledger,
        telemetry: Telemetry,
        agent: str = "",
        bus: Any = None,
        desk: Desk | None = None,
        wall_clock: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`agent` is the name from the command line, empty for the policy's; `wall_clock` returns unix seconds."""
        self.proxy = proxy
        self.chain = chain
        self.turns: Turns = next(one for one in chain.per_call if isinstance(one, Turns))
        self.keys = keys
        self.ledger = ledger
        """Another one in its place once the books, which could not be opened at the start, are."""
        self.telemetry = telemetry
        self.bus = bus
        """None where this build has none."""
        self.desk = desk
        """Where people are asked; None where nobody can be."""
        self.discovering: Any = None
        """`meshd.discovering.Discovering`: what can be called; None where no catalogue is kept."""
        self.state: Keeping | None = None
        """Shared state; made by the first who asks, where the daemon has not (`meshd.state.keeping.keeping`)."""
        self.traces: Any = None
        """`meshd.api.traces.TraceService`; use `trace_service`."""
        self.events: Any = None
        """`meshd.api.events.EventService`; use `event_service`."""
        self.event_counts = EventCounts()
        self.funded: dict[str, float] = {}
        """Until when (`proxy.clock`) an account that had something left is not asked again."""
        self.joined: dict[str, set[tuple[str, str]]] = {}
        """Groups, as name and topic, that an agent has joined since the start."""
        self.judged: dict[tuple[str, str, str], None] = {}
        """Workflow, source and id of events whose publishing was let pass as a turn, the latest of them."""
        self.last_attempts: dict[tuple[str, str], tuple[Actor, int]] = {}
        """By group and sequence, who was handed the last attempt at an event, and the record of the trace of that."""
        self.aside = None if desk is None else SettingAside(desk)
        """Events that wait for people; None where nobody can be asked."""
        self.wall_clock = wall_clock
        self._agent = agent
        self._random_bytes = random_bytes

    @property
    def policy(self) -> Policy:
        """The document in force now; whoever judges one request reads it once."""
        return self.proxy.policy

    @property
    def agent(self) -> str:
        """Name of the agent beside this sidecar."""
        return self._agent or self.policy.agent

    def is_beside(self, agent: str) -> bool:
        """Say whether calls of an agent of this name come through this sidecar: the policy's own, or one that the
        sidecar reaches directly. The same rule holds for tokens on the agents' port."""
        upstream = self.policy.upstreams.get(agent)
        return agent == self.agent or (upstream is not None and upstream.kind is Kind.AGENT and not upstream.is_peer)

    def issue(self, context: codec.Context, agent: str) -> bytes:
        """Return a token in which `agent` may act as `context` says; empty for the agent that the context names.

        Hops and path stay as they are: whoever hands a context on along an edge counts it before. Raises Refused
        where it does not fit into a token.
        """
        if agent and agent != context.agent:
            context = moved(context, agent, context.hops, context.path, policy=self.policy)
        expires_s = int(self.wall_clock()) + TOKEN_LIFE_S
        nonce = self._random_bytes(codec.NONCE_BYTES)
        try:
            return codec.mint(context, self.keys.ring, audience=codec.Audience.LOCAL, expires_s=expires_s, nonce=nonce)
        except codec.TokenTooLongError as error:
            raise Refused(Reason.HOP_LIMIT, f"The context cannot be handed out: {error}.") from error
        except ValueError as error:
            raise refused(f"The context cannot be handed out: {error}.") from error

    def read(self, token: bytes | str, agent: str = "") -> codec.Context:
        """Return what a token says that a sidecar issued to an agent beside this one; to `agent`, where that is given.

        Raises Refused(CONTEXT_INVALID) for any other token, whatever its bytes are, and where there is none.
        """
        if not token:
            raise Refused(
                Reason.CONTEXT_INVALID,
                "This needs a context token, and none was given: send that of the call or event that is handled, or "
                "open a workflow (ContextService.Open; with the SDK, `agent.workflow()`).",
            )
        try:
            given = token.encode("ascii") if isinstance(token, str) else token
            context, audience, _ = codec.verify(given, self.keys.ring, now_s=self.wall_clock())
        except codec.TokenInvalidError as error:
            raise refused(f"The context token does not verify: {error}.") from error
        except UnicodeEncodeError as error:
            raise refused("The context token does not verify: it is not ASCII.") from error
        if audience is not codec.Audience.LOCAL:
            raise refused("The context token was not issued to an agent, but for a sidecar or a run's address.")
        if agent and context.agent != agent:
            raise refused(f"The context token was issued to the agent {context.agent}, not to {agent}.")
        if not agent and not self.is_beside(context.agent):
            raise refused(
                f"The context token was issued to the agent {context.agent}, which is not beside this sidecar."
            )
        return context
