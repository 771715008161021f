"""What a caller asks for, as a call: what means nothing raises ValueError before anything is sent. Stdlib only."""

from __future__ import annotations

from typing import Any, Final

from meshd_sdk.bodies import encode
from meshd_sdk.carry import TOKENS_MAX
from meshd_sdk.link import Ask

INTENT: Final = "mesh://intent/"
"""Begins a target that says what is wanted, in place of a name."""


def asked(
    token: str,
    target: str,
    payload: Any,
    operation: str,
    timeout_s: float | None,
    delegate: int | None,
    idempotency_key: str,
    content_type: str,
) -> Ask:
    """Return the call that `Ctx.call` makes under a token."""
    if not operation and not target.startswith(INTENT):
        target, _, operation = target.partition("/")
    if not target:
        raise ValueError("a call has a target: the name of an agent or of an upstream")
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout_s!r}")
    body, kind = (b"", content_type) if payload is None else encode(payload, content_type)
    tokens = 0 if delegate is None else tokens_of(delegate)
    return Ask(target, operation, body, kind, token, timeout_s, tokens, idempotency_key)


def tokens_of(tokens: int) -> int:
    """Return a number of tokens that a call or a part may be given."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= TOKENS_MAX:
        raise ValueError(f"a number of tokens from 1 to {TOKENS_MAX}, not {tokens!r}")
    return tokens
