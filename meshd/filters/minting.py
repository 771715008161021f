"""Minting: the tokens in which a context travels on. The other half of Context."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from meshd.filters.globs import names
from meshd.refusal import Reason, Refused
from meshd.state.access import OPEN, Terms, handed
from meshd.state.keys import Who
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.mesh_key import MeshKeys
    from meshd.span import Span

TOKEN_LIFE_S: Final = 86_400
"""Of a minted token: above the longest run of one agent, since an expired token is refused."""
MINTED_MAX: Final = 1024
MINTED_AGAIN_S: Final = 1.0
"""For how long one token serves all calls from one context to one callee."""
NONCES_BYTES: Final = 512
"""Random bytes that are fetched at a time."""
WORKFLOW: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}\Z")

_LOCAL: Final = codec.Audience.LOCAL
_PEER: Final = codec.Audience.PEER
_RUN: Final = codec.Audience.RUN


class _Minted:
    """What the tokens from one context to one callee share."""

    __slots__ = ("context", "die", "parent", "shared", "shared_parent", "since_s", "token")

    def __init__(self, context: codec.Context, since_s: float, die: codec.Die, parent: bytes) -> None:
        self.context = context
        self.since_s = since_s
        self.die = die
        self.parent = parent
        """The context's own, as the token holds it."""
        self.token = b""
        """Serves all calls whose span nobody keeps, under the context's own parent; empty until the first of them."""
        self.shared = b""
        """Serves those whose span nobody keeps, and whose context has no parent: see `Span.join`."""
        self.shared_parent = b""


class Minting:
    """Mints, and remembers for a second."""

    __slots__ = ("_dues", "_generation", "_keys", "_minted", "_nonce_at", "_nonces", "_random_bytes")

    def __init__(self, keys: MeshKeys, random_bytes: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._generation = keys.generation
        self._random_bytes = random_bytes
        self._minted: dict[tuple[int, str, int], _Minted] = {}
        self._dues: dict[tuple[int, float], tuple[codec.Context, codec.Context]] = {}
        """By a lasting context and a deadline: both, the first so that its id stays its own."""
        self._nonces = b""
        self._nonce_at = 0

    def token(self, call: Call, context: codec.Context, audience: codec.Audience, callee: str) -> bytes:
        """Return the token of `context` for a callee, empty for whoever has no name of its own. Raises Refused."""
        if self._generation != self._keys.generation:
            # A key that was taken away signs nothing more.
            self._generation = self._keys.generation
            self._minted.clear()
        if call.lasting is not None and call.timeout_s is not None:
            context = self._due(call.lasting, context, call.timeout_s)
        key = (id(context), callee, int(audience))
        minted = self._minted.get(key)
        # The entry holds the context, so its id cannot have passed to another one; `is` makes sure.
        if minted is None or minted.context is not context or not 0 <= call.now_s - minted.since_s < MINTED_AGAIN_S:
            minted = self._minted_anew(call, context, audience, callee)
            if len(self._minted) >= MINTED_MAX:
                del self._minted[next(iter(self._minted))]
            self._minted[key] = minted
        try:
            return self._struck(minted, call.span)
        except codec.TokenTooLongError as error:
            raise _too_long(error) from error

    def _struck(self, minted: _Minted, span: Span | None) -> bytes:
        """Return a token with the call's span as parent where that is to be kept; the others share one."""
        parent = minted.parent
        if span is not None and (span.is_sampled or span.parent != minted.context.parent):
            # With a span of this call's own in it, a token is of no use to another call.
            own = span.parent_bytes
            if own and own != parent:
                return minted.die.strike(self._nonce(), own)
        elif span is not None and not parent and (shared := span.join(minted.shared_parent)):
            if not minted.shared:
                minted.shared, minted.shared_parent = minted.die.strike(self._nonce(), shared), shared
            return minted.shared
        if not minted.token:
            minted.token = minted.die.strike(self._nonce(), parent)
        return minted.token

    def _due(self, lasting: codec.Context, context: codec.Context, timeout_s: float) -> codec.Context:
        """Return what stands for a context that lasts only as long as its call: the deadline rounded down by a fortieth
        of the call's time at most, so that calls which follow one another share a token. `context` itself where it
        differs from the lasting one in more than its deadline."""
        deadline_s = context.deadline_s
        if deadline_s is None or not _is_same_but_for_deadline(context, lasting):
            return context
        step_s = math.ldexp(0.5, math.frexp(timeout_s)[1] - 6)
        rounded_s = math.floor(deadline_s / step_s) * step_s
        key = (id(lasting), rounded_s)
        found = self._dues.get(key)
        if found is None or found[0] is not lasting:
            found = (lasting, with_deadline(context, rounded_s))
            if len(self._dues) >= MINTED_MAX:
                del self._dues[next(iter(self._dues))]
            self._dues[key] = found
        return found[1]

    def _minted_anew(self, call: Call, context: codec.Context, audience: codec.Audience, callee: str) -> _Minted:
        agent, hops, path = context.agent, context.hops, context.path
        if callee:
            agent, hops = callee, hops + 1
        if callee or audience is _PEER:
            path = (*path, context.agent)
        sent = moved(context, agent, hops, path, policy=call.policy if callee else None)
        expires_s = int(call.wall_s) + TOKEN_LIFE_S
        try:
            die = codec.Die(sent, self._keys.ring, audience=audience, expires_s=expires_s)
            return _Minted(context, call.now_s, die, codec.parent_bytes(context.parent))
        except codec.TokenTooLongError as error:
            raise _too_long(error) from error
        except ValueError as error:
            raise refused(f"The context cannot be passed on: {error}.") from error

    def _nonce(self) -> bytes:
        # A call to the system takes longer than all the rest of a token.
        at = self._nonce_at
        if at >= len(self._nonces):
            self._nonces, at = self._random_bytes(NONCES_BYTES), 0
        self._nonce_at = at + codec.NONCE_BYTES
        return self._nonces[at : at + codec.NONCE_BYTES]


def mint_run(
    keys: MeshKeys,
    *,
    workflow: str,
    agent: str,
    wall_s: float,
    nonce: bytes,
    life_s: int = 30 * 86_400,
    ceiling: int | None = None,
    ceiling_microdollars: int | None = None,
    deadline_s: float | None = None,
    is_address: bool = True,
) -> str:
    """Return the opaque part of a per-run address, `/w/<it>/...`: every call through it belongs to `workflow`.

    Without `is_address` it is a token that the agent itself shows, as if it had been sent one. `ceiling` is in tokens,
    `deadline_s` in unix seconds, `nonce` 8 random bytes. Raises ValueError for a workflow that is not 1 to 64 letters,
    digits, dots, dashes, underscores or colons.
    """
    if WORKFLOW.match(workflow.encode("utf-8", "replace")) is None:
        raise ValueError("a workflow's name is 1 to 64 letters, digits, dots, dashes, underscores or colons")
    context = codec.Context(
        workflow,
        agent,
        deadline_s=deadline_s,
        account="workflow/" + workflow,
        ceiling=codec.NO_CEILING if ceiling is None and ceiling_microdollars is not None else ceiling,
        ceiling_microdollars=ceiling_microdollars,
    )
    expires_s = int(wall_s) + life_s
    audience = _RUN if is_address else _LOCAL
    return codec.mint(context, keys.ring, audience=audience, expires_s=expires_s, nonce=nonce).decode()


def moved(
    context: codec.Context,
    agent: str,
    hops: int,
    path: tuple[str, ...],
    parent: str | None = None,
    policy: Any = None,
) -> codec.Context:
    """Return a context as it is elsewhere: for another agent, further on, under another span.

    `policy` is the frozen document of the sidecar beside the agent, where this is it: of the references to shared state
    the agent then gets those to what it may read. Where it is beside another sidecar, that one judges them when the
    context comes there.
    """
    memory = context.memory
    if memory and policy is not None:
        memory = handed(memory, Who(agent, context.workflow, policy.tenant), mesh_terms(policy))
    return codec.Context(
        context.workflow,
        agent,
        hops,
        path,
        context.deadline_s,
        context.account,
        context.ceiling,
        context.parent if parent is None else parent,
        memory,
        context.ceiling_microdollars,
    )


def mesh_terms(policy: Any) -> Terms:
    """Return what a frozen document says of the mesh's own shared state."""
    section = policy.state
    return OPEN if section is None else Terms(names(section.mesh_readers).admits, names(section.mesh_writers).admits)


def with_deadline(context: codec.Context, deadline_s: float) -> codec.Context:
    """Return the context with another deadline, in unix seconds."""
    return codec.Context(
        context.workflow,
        context.agent,
        context.hops,
        context.path,
        deadline_s,
        context.account,
        context.ceiling,
        context.parent,
        context.memory,
        context.ceiling_microdollars,
    )


def _is_same_but_for_deadline(one: codec.Context, other: codec.Context) -> bool:
    return (
        one.workflow == other.workflow
        and one.agent == other.agent
        and one.hops == other.hops
        and one.path == other.path
        and one.account == other.account
        and one.ceiling == other.ceiling
        and one.parent == other.parent
        and one.memory == other.memory
        and one.ceiling_microdollars == other.ceiling_microdollars
    )


def _too_long(error: codec.TokenTooLongError) -> Refused:
    return Refused(
        Reason.HOP_LIMIT,
        f"The call cannot be passed on: {error}. Give the agents shorter names, or lower limits.hops.",
    )


def refused(message: str) -> Refused:
    return Refused(
        Reason.CONTEXT_INVALID,
        f"{message} Send the x-meshd-context of the request that you are answering, unchanged, or none.",
    )
