"""The context of an event: that in which it was published goes with it, and becomes one for whoever is handed it.

An event is an edge between agents as a call is: the consumer's hops are its publisher's plus one, the publisher joins
the path, and the same account pays. What lies on the bus is a token for sidecars, which no agent is ever shown.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from meshd.api.fields import utc_day
from meshd.call import Evidence
from meshd.engines.bus_port import DEAD_KEEP_S, KEEP_S
from meshd.filters.minting import moved, refused
from meshd.refusal import Reason, Refused
from meshd.trace.acts import Actor
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh

TOKEN_S: Final = KEEP_S + DEAD_KEEP_S
"""How long the token of an event holds: it may become a dead letter when it is about to go, and be redriven then."""
_NO_CONTEXT: Final[tuple[None, bytes]] = (None, b"")
log = logging.getLogger("meshd.api")


def publisher(mesh: Mesh, agent: str, token: str) -> codec.Context:
    """Return the context that `agent` publishes an event in. Raises Refused(CONTEXT_INVALID).

    Without a token it is that of the agent's shared account, as for calls. Hops then count from 0: events that breed
    events come to an end at the hop limit where their agents pass on what they were handed, else at that account's.
    """
    return mesh.read(token, agent) if token else own_context(mesh, agent)


def token_for_bus(mesh: Mesh, context: codec.Context) -> bytes:
    """Return the token that goes with an event which is published in a context. Raises Refused: HOP_LIMIT, DEADLINE."""
    wall_s, limits = mesh.wall_clock(), mesh.policy.limits
    if context.hops >= limits.hops:
        workflow = f"workflow {context.workflow}" if context.workflow else f"the calls charged to {context.account}"
        raise Refused(
            Reason.HOP_LIMIT,
            f"Who is handed this event would be at hop {context.hops + 1} of {workflow}, and {limits.hops} are "
            "allowed. Finish with what you have in place of handing it on; or raise limits.hops in the policy.",
        )
    if context.deadline_s is not None and context.deadline_s <= wall_s:
        raise Refused(Reason.DEADLINE, f"The time of workflow {context.workflow} is over: nothing more is published.")
    sent = moved(context, context.agent, context.hops, (*context.path, context.agent))
    return _minted(mesh, sent, codec.Audience.PEER, wall_s + TOKEN_S)


def actor_of(context: codec.Context) -> Actor:
    """Return who acts in a context, as the trace has it."""
    evidence = Evidence.TOKEN if context.workflow else Evidence.NONE
    return Actor(context.workflow or context.account, context.agent, context.hops, evidence.value)


def for_consumer(mesh: Mesh, agent: str, token: bytes) -> tuple[codec.Context, bytes] | tuple[None, bytes]:
    """Return the context to handle an event in, and its token; none where the one that came with it does not hold.

    The event is handed over all the same: the agent then acts on its own shared account. What meshd itself publishes
    comes with none: then it is that account's, so that what is published under its token is known to follow from it.
    """
    wall_s = mesh.wall_clock()
    try:
        if not token:
            context = own_context(mesh, agent)
            return context, mesh.issue(context, agent)
        context, audience, _ = codec.verify(token, mesh.keys.ring, now_s=wall_s)
        if audience is not codec.Audience.PEER:
            return _NO_CONTEXT
        received = moved(context, agent, context.hops + 1, context.path, policy=mesh.policy)
        return received, mesh.issue(received, agent)
    except (codec.TokenInvalidError, Refused) as error:
        log.warning("an event's context cannot be used: %s", error)
        return _NO_CONTEXT


def publisher_of(mesh: Mesh, token: bytes) -> codec.Context | None:
    """Return the context of whoever published an event, from the token that came with it; None where that does not
    hold."""
    if not token:
        return None
    try:
        context, audience, _ = codec.verify(token, mesh.keys.ring, now_s=mesh.wall_clock())
    except codec.TokenInvalidError as error:
        log.warning("an event's context cannot be used: %s", error)
        return None
    if audience is not codec.Audience.PEER:
        return None
    # On the bus its path has the publisher at its end already.
    return moved(context, context.agent, context.hops, context.path[:-1])


def own_context(mesh: Mesh, agent: str) -> codec.Context:
    """Return the context of an agent's shared account, as for calls."""
    payer = agent if mesh.policy.limits.names_workflows else mesh.agent
    return codec.Context("", agent, account=f"unattributed/{payer}/{utc_day(mesh.wall_clock())}")


def _minted(mesh: Mesh, context: codec.Context, audience: codec.Audience, expires_s: float) -> bytes:
    try:
        return codec.mint(
            context, mesh.keys.ring, audience=audience, expires_s=int(expires_s), nonce=os.urandom(codec.NONCE_BYTES)
        )
    except codec.TokenTooLongError as error:
        raise Refused(Reason.HOP_LIMIT, f"The event cannot carry its context: {error}.") from error
    except ValueError as error:
        raise refused(f"The event cannot carry its context: {error}.") from error
