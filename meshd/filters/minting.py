"""Minting: the tokens in which a context travels on. The other half of Context."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.mesh_key import MeshKeys

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

    __slots__ = ("context", "die", "parent", "since_s", "token")

    def __init__(self, context: codec.Context, since_s: float, die: codec.Die, parent: bytes) -> None:
        self.context = context
        self.since_s = since_s
        self.die = die
        self.parent = parent
        """The context's own, as the token holds it."""
        self.token = b""
        """Serves all calls that bring no span of their own; empty until the first of them."""


class Minting:
    """Mints, and remembers for a second."""

    __slots__ = ("_generation", "_keys", "_minted", "_nonce_at", "_nonces", "_random_bytes")

    def __init__(self, keys: MeshKeys, random_bytes: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._generation = keys.generation
        self._random_bytes = random_bytes
        self._minted: dict[tuple[int, str, int], _Minted] = {}
        self._nonces = b""
        self._nonce_at = 0

    def token(self, call: Call, context: codec.Context, audience: codec.Audience, callee: str) -> bytes:
        """Return the token of `context` for a callee, empty for whoever has no name of its own. Raises Refused."""
        if self._generation != self._keys.generation:
            # A key that was taken away signs nothing more.
            self._generation = self._keys.generation
            self._minted.clear()
        key = (id(context), callee, int(audience))
        minted = self._minted.get(key)
        # The entry holds the context, so its id cannot have passed to another one; `is` makes sure.
        if minted is None or minted.context is not context or not 0 <= call.now_s - minted.since_s < MINTED_AGAIN_S:
            minted = self._minted_anew(call, context, audience, callee)
            if len(self._minted) >= MINTED_MAX:
                del self._minted[next(iter(self._minted))]
            self._minted[key] = minted
        parent = call.span.parent_bytes if call.span is not None else b""
        try:
            # With a span of this call's own in it, a token is of no use to another call.
            if parent and parent != minted.parent:
                return minted.die.strike(self._nonce(), parent)
            if not minted.token:
                minted.token = minted.die.strike(self._nonce(), minted.parent)
        except codec.TokenTooLongError as error:
            raise _too_long(error) from error
        return minted.token

    def _minted_anew(self, call: Call, context: codec.Context, audience: codec.Audience, callee: str) -> _Minted:
        agent, hops, path = context.agent, context.hops, context.path
        if callee:
            agent, hops = callee, hops + 1
        if callee or audience is _PEER:
            path = (*path, context.agent)
        sent = moved(context, agent, hops, path)
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


def moved(context: codec.Context, agent: str, hops: int, path: tuple[str, ...]) -> codec.Context:
    return codec.Context(
        context.workflow,
        agent,
        hops,
        path,
        context.deadline_s,
        context.account,
        context.ceiling,
        context.parent,
        context.memory,
        context.ceiling_microdollars,
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
