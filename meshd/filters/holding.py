"""How long a caller can be held while a person or a supervisor decides, before it would give up by itself.

An official SDK says how long it waits; the others have defaults. Where the caller is shown signs of life (see
`meshd.proxy.holding`) it waits for as long as it is shown them.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshd.call import Call

GRPC_S: Final = 600.0
"""Of a gRPC call without a deadline."""
STREAM_S: Final = 86_400.0
"""Of a stream that is kept alive: its approval expires before."""
RPC_S: Final = 45.0
"""Of MCP, and of A2A without a stream: the clients of most languages give up after 60 s, and few of them start anew
when they are told of progress."""
PLAIN_S: Final = 25.0
"""Of what says nothing: common clients and load balancers give up after 30 s."""
SDK_S_MAX: Final = 3600.0
MARGIN: Final = 0.1
"""The part of a client's time that is left for the answer, or for the refusal, to reach it."""
MARGIN_S_MAX: Final = 5.0

KEPT_ALIVE: Final = frozenset({"openai", "anthropic"})
"""Dialects of LLMs whose streams are server-sent events, so that comments can stand in them."""
_TIMEOUTS: Final = frozenset({b"x-stainless-read-timeout", b"x-stainless-timeout"})
"""Seconds: as the Python SDKs of OpenAI and Anthropic say it, and as those of other languages do."""


def hold_s(call: Call) -> float:
    """Return the seconds, from the call's beginning (`call.now_s`), for which its caller can be held; never beyond the
    workflow's deadline. Pure; 0 where there is no time at all."""
    held_s = _client_s(call)
    context = call.context
    if context is not None and context.deadline_s is not None:
        held_s = min(held_s, less_margin(context.deadline_s - call.wall_s))
    return max(held_s, 0.0)


def is_kept_alive(call: Call) -> bool:
    """Say whether the caller reads an event stream, in which it can be shown signs of life before the answer."""
    ask, rpc = call.ask, call.rpc
    if ask is not None:
        return ask.is_stream and call.dialect is not None and call.dialect.name in KEPT_ALIVE
    # What `initialize` answers with stands in its head, which must not be out before.
    return rpc is not None and rpc.is_stream and bool(rpc.id) and rpc.method != "initialize"


def _client_s(call: Call) -> float:
    if call.dialect is not None and call.dialect.name == "grpc":
        return GRPC_S if call.timeout_s is None else less_margin(call.timeout_s)
    if call.rpc is not None:
        return STREAM_S if call.rpc.protocol == "a2a" and is_kept_alive(call) else RPC_S
    if call.ask is None:
        return PLAIN_S
    return STREAM_S if is_kept_alive(call) else _sdk_s(call)


def _sdk_s(call: Call) -> float:
    for name, value in call.headers:
        if name in _TIMEOUTS:
            try:
                timeout_s = float(value)
            except ValueError:
                continue
            if isfinite(timeout_s) and timeout_s > 0.0:
                return min(less_margin(timeout_s), SDK_S_MAX)
    return PLAIN_S


def less_margin(timeout_s: float) -> float:
    """Return the part of a client's time, in seconds, for which it can be held."""
    return timeout_s - min(timeout_s * MARGIN, MARGIN_S_MAX)
