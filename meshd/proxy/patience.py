"""How long each side is waited for. Pure: times come in, and what is overdue comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.outcome import Fault

if TYPE_CHECKING:
    from meshd.limits import Limits
    from meshd.upstream import Upstream

DETACHED_S_MAX: Final = 60.0
DETACHED_BYTES_MAX: Final = 8 * 1024 * 1024
"""How long, and for how much, a reply is read on for its usage record after its caller has gone."""


class Overdue(NamedTuple):
    """Who has been silent for too long: the fault names the side."""

    fault: Fault
    message: str


def overdue(
    upstream: Upstream,
    limits: Limits,
    silent_s: float,
    *,
    is_sent: bool,
    is_callers_turn: bool,
    has_head: bool,
    tokenless_s: float = 0.0,
) -> Overdue | None:
    """Judge an attempt on which nothing has moved for `silent_s` seconds; None where that is not too long.

    `is_callers_turn`: the caller reads no more of its reply, or sends no more of its request. `tokenless_s`: for how
    long a model's first output is waited for, whatever else has come; 0 where none is.
    """
    first_token_s = upstream.first_token_timeout_s
    if not is_sent:
        if silent_s > upstream.first_byte_timeout_s:
            waited = f"No connection to {upstream.name} was free for {upstream.first_byte_timeout_s:g} s"
            return Overdue(Fault.POOL_FULL, waited)
    elif is_callers_turn:
        if silent_s > limits.idle_timeout_s:
            return Overdue(Fault.CALLER_GONE, "The request's body stopped coming")
    elif first_token_s is not None and tokenless_s > first_token_s:
        waited = f"{upstream.name} sent no token within {first_token_s:g} s"
        return Overdue(Fault.FIRST_TOKEN_TIMEOUT, waited)
    elif not has_head:
        if silent_s > upstream.first_byte_timeout_s:
            waited = f"{upstream.name} sent no reply within {upstream.first_byte_timeout_s:g} s"
            return Overdue(Fault.FIRST_BYTE_TIMEOUT, waited)
    elif silent_s > upstream.gap_timeout_s:
        return Overdue(Fault.GAP_TIMEOUT, f"{upstream.name} fell silent for {upstream.gap_timeout_s:g} s")
    return None


def is_body_too_slow(limits: Limits, taken_s: float, body_bytes: int) -> bool:
    """Say whether a body that must be read whole comes so slowly that its sender only means to hold the place."""
    return taken_s > limits.header_timeout_s and body_bytes < limits.body_rate_min_bytes_s * taken_s
